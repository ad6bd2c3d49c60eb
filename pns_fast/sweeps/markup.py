"""HTML out of Python: text is escaped unless it is markup already, so that nothing can be forgotten."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


class Markup(str):
    """Text that is HTML."""

    __slots__ = ()


def escaped(text: object) -> Markup:
    """HTML that shows ``text``; Markup stays as it is.

    Example:
        >>> escaped("<b> & c"), escaped(Markup("<br>"))
        ('&lt;b&gt; &amp; c', '<br>')
    """
    return text if isinstance(text, Markup) else Markup(html.escape(str(text)))


def joined(parts: Iterable[object], between: str = "") -> Markup:
    """The parts, escaped, one after the other."""
    return Markup(escaped(between).join(escaped(part) for part in parts))


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element; children and attributes are escaped, ``class_`` is class and ``data_v`` data-v, None is left out.

    Example:
        >>> tag("a", "1 < 2", href='#"', title=None)
        '<a href="#&quot;">1 &lt; 2</a>'
    """
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    shown = "".join(f' {key}="{html.escape(str(value))}"' for key, value in given.items())
    return Markup(f"<{name}{shown}>" if name == "img" else f"<{name}{shown}>{joined(children)}</{name}>")


def table(header: Sequence[str], rows: Iterable[Iterable[object]], **attributes: object) -> Markup:
    """A table in a box that scrolls sideways; content that is no ``<td>`` yet becomes one.

    A cell with ``data-v`` holds a number; columns that begin with one are aligned to the right, their headers too.
    """
    rows = [[_cell(content) for content in row] for row in rows]
    first = rows[0] if rows else [""] * len(header)
    kinds = ["number" if cell.startswith("<td data-v=") else None for cell in first]
    head = tag("tr", *(tag("th", name, scope="col", class_=k) for name, k in zip(header, kinds, strict=True)))
    body = tag("tbody", *(joined(["\n", tag("tr", *row)]) for row in rows))
    return tag("div", tag("table", tag("thead", head), body, **attributes), class_="scroll")


def _cell(content: object) -> Markup:
    return content if isinstance(content, Markup) and content.startswith("<td") else tag("td", content)
