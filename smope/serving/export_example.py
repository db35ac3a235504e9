"""The lines of Python that classify with an exported model, without this package. No torch."""

from __future__ import annotations

import json

OPEN = {
    "onnx": """\
session = onnxruntime.InferenceSession({file})
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
""",
    "torch": """\
facts = {{"smope.json": ""}}
program = torch.export.load({file}, extra_files=facts)
classes = json.loads(facts["smope.json"])["classes"]
""",
}
RUN = {
    "onnx": '[logits] = session.run(None, {"images": pixels})\n',
    "torch": "logits = program.module()(torch.from_numpy(pixels))\n",
}
PICTURE = 'picture = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")\n'
BYTES = "pixels = numpy.array(picture)[None]  # (1, height, width, 3)\n"
RESIZE = """\
size = [int({shorter} * side / min(picture.size)) for side in picture.size]
left, top = (round((side - {side}) / 2) for side in size)
picture = picture.resize(size, Image.Resampling.BILINEAR)
picture = picture.crop((left, top, left + {side}, top + {side}))
pixels = numpy.array(picture, numpy.float32)[None].transpose(0, 3, 1, 2) / 255
"""


def example(form: str, file: str, sizes: tuple[int, int] | None = None) -> str:
    """A program that prints the class of photo.jpg.

    Args:
        form: "onnx" or "torch".
        file: The exported file.
        sizes: Side of the images, and what the shorter side of a picture is resized to; None where
            the graph does that.

    Returns:
        Lines of Python.
    """
    library = {"onnx": "onnxruntime", "torch": "torch"}[form]
    prepare = BYTES if sizes is None else RESIZE.format(side=sizes[0], shorter=sizes[1])
    return (
        f"import json, numpy, {library}\nfrom PIL import Image, ImageOps\n\n"
        f"{OPEN[form].format(file=json.dumps(file))}{PICTURE}{prepare}{RUN[form]}"
        "print(classes[int(logits[0].argmax())])\n"
    )
