"""Mutations of files: of their bytes, and of what these mean. The generator decides everything."""

import contextlib
import copy
import gzip
import io
import json
import math
import random
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from typing import Any, NamedTuple

warnings.filterwarnings("ignore", "Duplicate name")
Special = tuple[str, str]  # ("link", target), ("pipe", ""), ("folder", "")
Tree = dict[str, bytes | Special]  # the files of a folder, by path
Parts = list[tuple[Any, bytes]]  # of an archive: (name, content)

OUTSIDE = "../outside/secret"  # from the case's folder; see `watch.Watch`
DEEP, DIGITS = "\ue000deep", "\ue000digits"  # JSON that Python cannot write
_RAW = {json.dumps(DEEP): "[" * 100_000 + "]" * 100_000, json.dumps(DIGITS): "9" * 5000}
PATHS = (f"../{OUTSIDE}", OUTSIDE, f"/proc/self/cwd/{OUTSIDE}", "/etc/hostname", "/dev/zero", "..")
PATHS += ("", ".", "a/../../b", "\\\\host\\share", "file:///etc/hostname", "gs://bucket/x")
NAMES = ("fuzz_evil:run", "os:system", "subprocess:Popen", "builtins:exec", "antigravity:fly")
NAMES += ("unlearn_jax.files:nothing", ":", "fuzz_evil", "math:pi", "jax:jit", "numpy:load")
TEXTS = ("\0", "\n", "a\r\nb", "\x1b[31mred\x07", "\ud800", "e\u0301", "\u202egnp.exe", "%s{0}{x}")
TEXTS += ("9" * 400, "x" * 70_000, "NaN", "-1", "1e999", "☃", "\u0661\u0662", "²", "a,b", "<b>")
NUMBERS = (0, -1, 1, 255, 10**6, 2**31, 2**32, 2**63, 2**64, 2**70, -(2**70), 10**400, 0.5, 1e308)
NUMBERS += (-1e308, 5e-324, -0.0, math.nan, math.inf, -math.inf)
VALUES = (None, True, False, [], {}, [[]], {"": {}}, [None] * 5, [[[0]]], {"a": {"a": {}}}, DEEP)
VALUES += (DIGITS,)
# That a link out of the folder is followed is no finding: who names a folder may have links there.
SPECIAL: tuple[Special | None, ...] = (
    None,
    ("link", "../linked"),
    ("link", "/dev/zero"),
    ("pipe", ""),
)
SPECIAL += (("folder", ""), ("link", "."), ("link", "nowhere"))
INTEGERS = [struct.pack(end + kind, value) for end in "<>" for kind, value in
            (("H", 65535), ("I", 2**32 - 1), ("I", 2**31 - 1), ("Q", 2**63), ("Q", 2**40), ("I", 0),
             ("Q", 0), ("d", math.nan), ("f", math.inf))]  # fmt: skip


class Codec(NamedTuple):
    """How a file is opened for mutations of what it means, and closed again, checksums right.

    Attributes:
      open: from bytes to JSON values, a text, `Parts` or other bytes.
      close: back.
      tokens: (regex, replacements) of what is worth replacing in bytes.
    """

    open: Callable[[bytes], Any] = bytes
    close: Callable[[Any], bytes] = bytes
    tokens: tuple[tuple[bytes, tuple[bytes, ...]], ...] = ()


def mutated(
    rng: random.Random,
    tree: Tree,
    codecs: Mapping[str, Codec],
    seal: Callable[[Tree], None] | None = None,
) -> Tree:
    """Return the files of a folder with some mutations.

    Args:
      rng: draws them.
      tree: the files.
      codecs: by pattern of the path; what none is for stays.
      seal: makes what files say of one another right again, mostly called.
    """
    tree = dict(tree)
    of = {path: codec for path in sorted(tree) for pattern, codec in codecs.items()
          if fnmatch(path, pattern)}  # fmt: skip
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        path = rng.choice(list(of))
        if rng.random() < 0.03:
            tree[path] = rng.choice(SPECIAL) or b""
        elif isinstance(content := tree[path], bytes):
            tree[path] = _mutated_file(rng, content, of[path])
    if seal and rng.random() < 0.8:
        with contextlib.suppress(Exception):  # there is nothing any more that could be sealed
            seal(tree)
    return tree


def _mutated_file(rng: random.Random, content: bytes, codec: Codec) -> bytes:
    if rng.random() < 0.25:
        return of_bytes(rng, content, codec.tokens)
    try:
        return codec.close(changed(rng, codec.open(content), codec.tokens))
    except Exception:  # it was mutated before, or what is in it now cannot be written
        return of_bytes(rng, content, codec.tokens)


def changed(rng: random.Random, value: Any, tokens: Any = ()) -> Any:
    """Return a value with one mutation, by its type."""
    if isinstance(value, bytes):
        return of_bytes(rng, value, tokens)
    if isinstance(value, str):
        return of_text(rng, value)
    if value and isinstance(value, list) and isinstance(value[0], tuple):
        return of_parts(rng, value, tokens)
    return of_json(rng, value)


def of_bytes(rng: random.Random, data: bytes, tokens: Any = ()) -> bytes:
    """Return bytes with one mutation: bits, places, lengths, or a token replaced."""
    n, at = len(data), rng.randrange(len(data) + 1)
    length = min(n - at, rng.choice((1, 2, 4, 8, 16, 64, 256, 4096)))
    match rng.choice("bits byte cut gone twice splice integer zeros many token token".split()):
        case "bits" if n:
            flipped = bytearray(data)
            for _ in range(rng.choice((1, 1, 3, 8))):
                flipped[rng.randrange(n)] ^= 1 << rng.randrange(8)
            return bytes(flipped)
        case "byte" if n:
            return data[:at] + rng.randbytes(length) + data[at + length :]
        case "cut":
            return data[:at]
        case "gone":
            return data[:at] + data[at + length :]
        case "twice":
            return data[: at + length] + data[at:]
        case "splice":
            start = rng.randrange(n + 1)
            return data[:at] + data[start : start + length] + data[at + length :]
        case "integer":
            put = rng.choice(INTEGERS)
            return data[:at] + put + data[at + len(put) :]
        case "zeros":
            return data[:at] + bytes(length) + data[at + length :]
        case "many":
            return data[:at] + data[at : at + length] * rng.choice((2, 100, 3000)) + data[at:]
        case "token" if tokens:
            pattern, puts = rng.choice(tokens)
            if found := list(re.finditer(pattern, data)):
                hit = rng.choice(found)
                return data[: hit.start()] + rng.choice(puts) + data[hit.end() :]
    return data[:at] + bytes([rng.randrange(256)]) + data[at:]


def of_text(rng: random.Random, text: str) -> str:
    """Return a text with one mutation: characters, lines, separators, ends of lines."""
    lines, at = text.split("\n"), rng.randrange(len(text) + 1)
    i = rng.randrange(len(lines))
    match rng.choice("put put line twice swap cell end mark wide many cut".split()):
        case "put":
            put = rng.choice((*TEXTS, *PATHS, *'",;\t#"\'', "\0", "\r", '""', "label", "id"))
            return text[:at] + put + text[at + rng.choice((0, 0, len(put))) :]
        case "line":
            lines[i] = rng.choice((*PATHS, *TEXTS, *map(str, NUMBERS), "# x", '"', "id,label"))
        case "twice":
            lines.insert(i, rng.choice(lines))
        case "swap":
            j = rng.randrange(len(lines))
            lines[i], lines[j] = lines[j], lines[i]
        case "cell":
            cells = re.split("([,;\t ])", lines[i])
            cells[rng.randrange(len(cells))] = rng.choice((*TEXTS, *PATHS, *map(str, NUMBERS)))
            lines[i] = "".join(cells)
        case "end":
            return text.replace("\n", rng.choice(("\r\n", "\r", "\u2028", "\x0b", "\x85")))
        case "mark":
            return rng.choice(("\ufeff", "#", "\0", '"')) + text
        case "wide":
            lines[i] = lines[i] + "," * rng.choice((1, 5, 20_000)) + lines[i] * 3
        case "many":
            lines[i : i + 1] = [lines[i]] * rng.choice((2, 200, 5000))
        case _:
            return text[:at]
    return "\n".join(lines)


def of_parts(rng: random.Random, parts: Parts, tokens: Any = ()) -> Parts:
    """Return the parts of an archive with one mutation of a part, its name, or their order."""
    parts, i = list(parts), rng.randrange(len(parts))
    name, content = parts[i]
    match rng.choice("in in in in gone twice swap name".split()):
        case "in":
            parts[i] = name, of_bytes(rng, content, tokens)
        case "gone" if len(parts) > 1:
            del parts[i]
        case "twice":
            parts.insert(rng.randrange(len(parts)), (name, of_bytes(rng, content, tokens)))
        case "swap":
            j = rng.randrange(len(parts))
            parts[i], parts[j] = (name, parts[j][1]), (parts[j][0], content)
        case _ if isinstance(name, str):
            parts[i] = rng.choice((*PATHS, *TEXTS, f"../{name}", name.upper())), content
    return parts


def of_json(rng: random.Random, value: Any) -> Any:
    """Return a JSON value with one mutation at a random place: keys, types, numbers, texts."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return rng.choice(VALUES)
    holder, key = rng.choice(places)
    old = holder[key]
    match rng.choice("put put put gone name copy type near text list".split()):
        case "put":
            kinds = (VALUES, NUMBERS, NUMBERS, TEXTS, PATHS, NAMES, (_nested(300), "x"))
            holder[key] = copy.deepcopy(rng.choice(rng.choice(kinds)))
        case "gone":
            del holder[key]
        case "name" if isinstance(holder, dict):
            holder[rng.choice((*TEXTS, *PATHS, str(key).upper(), f"{key}_"))] = holder.pop(key)
        case "copy":
            other, at = rng.choice(places)
            holder[key] = copy.deepcopy(other[at])
        case "type":
            kinds = (str(old), [old], {"a": old}, [old, old], not old, float(old is None), None)
            holder[key] = rng.choice(kinds)
        case "near" if isinstance(old, int | float) and math.isfinite(old):
            holder[key] = rng.choice((old + 1, old - 1, -old, old * 10**9, old / 3, old + 1e-9))
        case "text" if isinstance(old, str) and old:
            holder[key] = of_text(rng, old)
        case "list" if isinstance(old, list) and old:
            several = ([*old, old[-1]], old[1:], old[::-1], old * rng.choice((2, 3000)))
            holder[key] = rng.choice(several)
        case _:
            holder[key] = rng.choice(NUMBERS)
    return value


def _places(value: Any) -> Any:
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def dumped(value: Any) -> bytes:
    """Write a value as JSON, or what is no JSON any more: NaN, brackets too deep, long numbers."""
    text = json.dumps(value, indent=1)
    for mark, put in _RAW.items():
        text = text.replace(mark, put)
    return text.encode()


def _lines(value: list) -> bytes:
    return b"".join(dumped(line).replace(b"\n", b"") + b"\n" for line in value)


def zipped(data: bytes) -> Parts:
    """Open a zip file."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def zip_of(parts: Parts) -> bytes:
    """Write a zip file with right checksums; headers of .npy get the length that they have."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in parts:
            if content.startswith(b"\x93NUMPY\x01\x00") and b"\n" in content[:5000]:
                end = content.index(b"\n") + 1
                content = content[:8] + struct.pack("<H", max(0, end - 10)) + content[10:]
            archive.writestr(zipfile.ZipInfo(name), content)
    return data.getvalue()


def _chunks(data: bytes) -> Parts:
    found, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def _of_chunks(parts: Parts) -> bytes:
    packed = (struct.pack(">I", len(x)) + kind + x + struct.pack(">I", zlib.crc32(kind + x))
              for kind, x in parts)  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


# Sizes of images, as 16- and 32-bit numbers: bombs, and what is just too large or too long.
_PAIRS = ((20_000, 8_000), (65_535, 65_535), (1, 60_000), (0, 0), (13_000, 13_000), (300, 1))
_KINDS = ("<HH", ">HH", "<II", ">II")
_SIZES = {kind: tuple(struct.pack(kind, *pair) for pair in _PAIRS) for kind in _KINDS}
_TIFF = tuple(struct.pack("<I", side) for pair in _PAIRS for side in pair)
_FIELDS = tuple(struct.pack("<I", x) for x in (0, 1, 2**31, 2**32 - 1, 99, 0x00080008, 0x1000E))
# Versions, flags, methods, checksums, sizes and offsets in both headers of a file in a zip.
_PLACES = (("PK\x01\x02", (4, 12, 16, 20, 38)), ("PK\x03\x04", (14,)), ("PK\x05\x06", (6,)))
ZIP_TOKENS = tuple(
    (f"(?s)(?<={head}.{{{at}}}).{{4}}".encode("latin-1"), _FIELDS)
    for head, places in _PLACES
    for at in places
)
_SHAPES = "() (0,) (-1,) (2,) (1000000000000,) (9223372036854775807,2) 3 (1,)*9 (2,2,2,2,2) (1e3,) "
_SHAPES += "(4294967296,4294967296) (400,400,400,3)"
_TYPES = "'|O' '<f8' '|S9' '<U1000000' '|V0' '|b1' '<M8[s]' '>i8' 'x' '<c16' '<f2' '|S0' '<i8' "
_TYPES += "'<u8' [('a','<f8',(1000000,))]"
NPY_TOKENS = (
    (rb"(?<='shape': )\([^)]*\)", tuple(_SHAPES.encode().split())),
    (rb"(?<='descr': )'[^']*'", tuple(_TYPES.encode().split())),
)

BYTES, TEXT = Codec(), Codec(lambda data: data.decode("utf-8", "surrogateescape"),
                             lambda text: text.encode("utf-8", "surrogatepass"))  # fmt: skip
JSON = Codec(json.loads, dumped, ((rb'"\w+": ', (b'"a": 1, "a": ', b'"sha256": ', b"")),))
LINES = Codec(lambda data: [json.loads(line) for line in data.splitlines()], _lines, JSON.tokens)
NPZ = Codec(zipped, zip_of, ZIP_TOKENS + NPY_TOKENS)
GZIP = Codec(gzip.decompress, lambda data: gzip.compress(data, 1))
PNG = Codec(_chunks, _of_chunks, ((rb"(?s)\A.{8}(?=.{5}\Z)", _SIZES[">II"]),))
IMAGE = Codec(tokens=((rb"(?s)(?<=\xff\xc0\x00\x11\x08).{4}", _SIZES[">HH"]),
                      (rb"(?s)(?<=\AGIF8[79]a).{4}", _SIZES["<HH"]),
                      (rb"(?s)(?<=\ABM.{16}).{8}", _SIZES["<II"]),
                      (rb"(?s)(?<=[\x00\x01]\x01[\x03\x04]\x00\x01\x00\x00\x00).{4}", _TIFF),
                      (rb"(?<=P[56]\s)\d+ \d+", (b"20000 8000", b"0 0", b"65535 65535", b"1 60000",
                                                 b"13000 13000", b"-1 -1", b"9" * 30)),
                      (rb"(?<=ispe....)........", _SIZES[">II"])))  # fmt: skip


def sealed(kind: str, seal: Callable[[Any, str], str]) -> Codec:
    """Return the codec of a sealed record, which is sealed again."""

    def close(value: Any) -> bytes:
        with_hash = {k: v for k, v in value.items() if k not in ("format", "sha256")}
        try:
            return seal(with_hash, value.get("format", kind)).encode()
        except (ValueError, RecursionError):  # NaN, for example
            return dumped(value)

    return Codec(json.loads, close, JSON.tokens)
