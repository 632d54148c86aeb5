"""A clip as HTML, for notebooks."""

from __future__ import annotations

import base64
import html


def player(wav: bytes | memoryview, caption: str) -> str:
    """Return an <audio> element that holds the whole file, 2.7 bytes of text per sample, and its caption, escaped, below it."""
    data = base64.b64encode(wav).decode("ascii")
    return f"""<figure style="margin: 0"><audio controls src="data:audio/wav;base64,{data}"></audio>
<figcaption>{html.escape(caption)}</figcaption></figure>"""
