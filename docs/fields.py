"""Shows the section `Fields:` of a docstring as the table that `Attributes:` would be."""

import re

import griffe

_HEADER = re.compile(r'^Fields[^\n]*:$', re.MULTILINE)


class Fields(griffe.Extension):
    """An extension of the reader of docstrings, named in mkdocs.yml."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Rename the section, before anything reads it."""
        if obj.docstring is not None:
            obj.docstring.value = _HEADER.sub('Attributes:', obj.docstring.value)
