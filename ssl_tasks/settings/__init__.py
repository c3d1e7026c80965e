"""What a recipe may say, as typed sections; how a recipe is read."""
