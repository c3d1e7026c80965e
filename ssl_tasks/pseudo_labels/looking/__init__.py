"""Tables, SQL and inspection of pseudo-labels."""
