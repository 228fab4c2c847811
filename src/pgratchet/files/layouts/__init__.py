"""The layouts of directories, one module each."""
