"""Makes modes/* and modes.safetensors: small pictures in many formats and modes, and what Pillow reads.

Needs Pillow 13.0.0, numpy and safetensors. Tensors: `<file>/rgb` is convert("RGB"), [h, w, 3];
`<file>/openai` is shortest edge to 16 bicubic, centre crop 16 (offset rounded half to even), then RGB,
[3, 16, 16]; `resize/<channels>/<filter>/<w>x<h>` is `noise` resized, [h, w, channels].
"""
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

here = Path(__file__).parent
out = here / "modes"
out.mkdir(exist_ok=True)
photo = Image.open(here / "images" / "astronaut_143x190.png").convert("RGB").crop((40, 10, 81, 37))
rng = np.random.default_rng(7)
ramp = Image.fromarray(np.tile(np.linspace(0, 255, photo.width).astype(np.uint8), (photo.height, 1)))
rgba = photo.copy()
rgba.putalpha(ramp)
la = photo.convert("L")
la.putalpha(ramp)
wide = rng.integers(0, 600, (photo.height, photo.width), dtype=np.uint16)

photo.save(out / "rgb.png")
photo.convert("L").save(out / "l.png")
photo.convert("1").save(out / "two_level.png")
la.save(out / "la.png")
rgba.save(out / "rgba.png")
Image.fromarray(wide).save(out / "gray16.png")
photo.quantize(200).save(out / "palette8.png")
photo.quantize(13).save(out / "palette4.png")
photo.quantize(4).save(out / "palette2.png", bits=2)
photo.save(out / "rgb.bmp")
photo.quantize(200).save(out / "palette.bmp")
photo.convert("L").save(out / "l.bmp")
photo.save(out / "rgb.tif")
photo.save(out / "lzw.tif", compression="tiff_lzw")
rgba.save(out / "rgba.tif")
Image.fromarray(wide).save(out / "gray16.tif")
exif = Image.Exif()
exif[0x0112] = 6
photo.save(out / "turned.tif", exif=exif)
photo.quantize(100).save(out / "palette.gif")
photo.convert("L").save(out / "gray.gif")
photo.quantize(30).save(out / "interlaced.gif", interlace=1)
photo.save(out / "lossless.webp", lossless=True)
rgba.save(out / "rgba_lossless.webp", lossless=True, exact=True)
photo.save(out / "lossy.webp", quality=90)
photo.save(out / "420.jpg", quality=90)
photo.save(out / "422.jpg", quality=90, subsampling=1)
photo.save(out / "444.jpg", quality=90, subsampling=0)
photo.save(out / "progressive.jpg", quality=90, progressive=True)
photo.save(out / "turned.jpg", quality=90, exif=exif)
photo.convert("L").save(out / "l.jpg", quality=90)
photo.convert("CMYK").save(out / "cmyk.jpg", quality=95)
# Four inks as YCCK: the same file with the colour transform of the Adobe segment set to 2.
ink = (out / "cmyk.jpg").read_bytes()
at = ink.index(b"Adobe") + 11
(out / "ycck.jpg").write_bytes(ink[:at] + b"\x02" + ink[at + 1:])

tensors = {}
for file in sorted(out.iterdir()):
    image = Image.open(file)
    tensors[f"{file.name}/rgb"] = np.asarray(image.convert("RGB"))
    w, h = image.size
    image.load()
    w, h = image.size
    size = (16, int(16 * h / w)) if w <= h else (int(16 * w / h), 16)
    small = image.resize(size, Image.BICUBIC)
    left, top = round((size[0] - 16) / 2), round((size[1] - 16) / 2)
    small = small.crop((left, top, left + 16, top + 16)).convert("RGB")
    tensors[f"{file.name}/openai"] = np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))
    print(file.name, image.mode, image.size)

noise = rng.integers(0, 256, (29, 37, 3), dtype=np.uint8)
tensors["noise"] = noise
for channels, mode in ((1, "L"), (3, "RGB")):
    image = Image.fromarray(noise[:, :, 0] if channels == 1 else noise)
    for name, filter in (("nearest", 0), ("bilinear", 2), ("bicubic", 3)):
        for w, h in ((37, 11), (5, 29), (1, 1), (64, 50), (13, 90), (36, 28), (111, 7), (36, 7), (33, 20)):
            array = np.asarray(image.resize((w, h), filter)).reshape(h, w, channels)
            tensors[f"resize/{channels}/{name}/{w}x{h}"] = np.ascontiguousarray(array)
save_file(tensors, here / "modes.safetensors")
