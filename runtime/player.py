"""A clip as HTML, for notebooks."""

from __future__ import annotations

import base64
import html
import io

import numpy as np


def player(audio: np.ndarray, sample_hz: int, caption: str) -> str:
    """Return an <audio> element that holds the whole clip, and its caption, escaped, below it.

    audio: float32 [samples]. It is embedded as 16-bit WAV, 2.7 bytes of text per sample; a peak beyond 1 scales the whole clip down.
    """
    import soundfile

    wav = io.BytesIO()
    soundfile.write(wav, audio / max(np.abs(audio).max(initial=0), 1), sample_hz, format="WAV", subtype="PCM_16")
    data = base64.b64encode(wav.getvalue()).decode("ascii")
    return f"""<figure style="margin: 0"><audio controls src="data:audio/wav;base64,{data}"></audio>
<figcaption>{html.escape(caption)}</figcaption></figure>"""
