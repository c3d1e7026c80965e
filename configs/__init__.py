"""The built-in recipes: YAML and no code."""
