"""The layouts of directories, one module each."""

from collections.abc import Mapping

from pgratchet.files.layout import Layout
from pgratchet.files.layouts.own import own

DEFAULT_LAYOUT: Layout = own
LAYOUTS: Mapping[str, Layout] = {layout.name: layout for layout in (own,)}
"""By the name that a person gives."""
