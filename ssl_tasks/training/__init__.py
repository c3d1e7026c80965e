"""One network trained by one method, so that killing it at any moment costs nothing."""
