"""The ways in which a directory may be written, one module each."""
