"""Contains the functions behind the verbs of the command line; they return data and print nothing."""
