"""How a directory of migrations is written: one module per convention."""
