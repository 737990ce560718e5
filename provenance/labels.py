"""From a frame to the bytes of a file, with the labels that readers without C2PA understand.

Written before signing, so that the signature covers them: XMP with IPTC DigitalSourceType and CreatorTool, EXIF
Software. One frame always gives the same bytes: no clock, no random number, fixed settings, the same colours to the
eye.
"""

from __future__ import annotations

import io
from typing import Any
from xml.sax.saxutils import escape

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from farm.errors import BadInput, nearest
from farm.job import FORMATS
from farm.ports import Frame
from provenance.manifest import farm_version

# PNG loses nothing; level 4 is within 1% of the size of level 6, in half the time on smooth pictures. Lossy ones are
# visually lossless: quality 95, JPEG with its colours unsubsampled (4:4:4).
ENCODING: dict[str, dict[str, Any]] = {
    "png": {"compress_level": 4},
    "jpeg": {"quality": 95, "subsampling": "4:4:4", "optimize": False},
    "webp": {"quality": 95, "method": 4},
}
_EXIF_SOFTWARE = 0x0131
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmp:CreatorTool="{tool}">
   <Iptc4xmpExt:DigitalSourceType>{source}</Iptc4xmpExt:DigitalSourceType>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


def encode(frame: Frame, format: str, source: str) -> bytes:
    """`source` is the IPTC digital source type, the same the manifest names."""
    if format not in ENCODING:
        raise BadInput(f"unknown format {format!r}", field="format", fix=nearest(format, FORMATS))
    expected = frame.width * frame.height * 3
    if not expected or len(frame.pixels) != expected:
        raise BadInput(f"{len(frame.pixels)} bytes are not {frame.width} x {frame.height} RGB pixels", field="pixels")
    picture = Image.frombytes("RGB", (frame.width, frame.height), frame.pixels)
    out = io.BytesIO()
    picture.save(out, format.upper(), exif=_exif(), **_labels(format, source), **ENCODING[format])
    return out.getvalue()


def xmp(source: str) -> str:
    return _XMP.format(tool=_tool(), source=escape(source))


def _labels(format: str, source: str) -> dict[str, Any]:
    if format != "png":
        return {"xmp": xmp(source).encode()}
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp(source))
    return {"pnginfo": info}


def _exif() -> bytes:
    exif = Image.Exif()
    exif[_EXIF_SOFTWARE] = _tool()
    return exif.tobytes()


def _tool() -> str:
    return f"Farm {farm_version()}"
