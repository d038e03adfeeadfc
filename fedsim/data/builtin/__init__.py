"""Small data sets that come with the program, for tests and first steps. Nothing that is downloaded."""
