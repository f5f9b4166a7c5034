"""Whether a container file is all there, by its own nesting of lengths: decoders play what is left of a cut one.

Each function takes an open file and its size in bytes and gives the words for a rejection, or None. Only the frame of
a file is looked at (boxes, elements, packets), never the sound inside.
Sources: ISO/IEC 14496-12 (MP4), RFC 8794 and 9559 (Matroska), ISO/IEC 13818-1 (transport stream), Adobe's FLV
specification.
"""

import struct
from collections.abc import Callable, Mapping
from typing import BinaryIO

import numpy as np

MAX_ELEMENTS = 1 << 22  # a file of more is no clip
CUT = "cut off: {what} at byte {place} has {promised} bytes, {present} are there"

MP4_BOXES = frozenset({b"moov", b"mdat"})
MP4_OUTERMOST = MP4_BOXES | {
    b"ftyp", b"styp", b"moof", b"mfra", b"free", b"skip", b"wide", b"uuid", b"meta", b"sidx", b"ssix", b"prft", b"emsg",
    b"pdin", b"udta", b"pnot",
}  # fmt: skip
MP4_ONCE = frozenset({b"moov", b"ftyp"})

# Elements of Matroska that hold the ones looked at, and those that only stand at the top or in a segment.
EBML, SEGMENT, CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
_OUTER = frozenset(
    {EBML, SEGMENT, CLUSTER, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367}
)
_IN_CLUSTER = frozenset({0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF})
_ANYWHERE = frozenset({0xEC, 0xBF})  # void, checksum
EBML_HEADER_BYTES = 12

TS_PACKET_BYTES, TS_SYNC, TS_EMPTY_PID = 188, 0x47, 0x1FFF
TS_BLOCK_PACKETS = 1 << 13

STREAMED_BYTES = 0x7FFFF000  # a header claiming this many bytes or more was written before the length was known
UNKNOWN_LENGTH = 0xFFFFFFFF
ASF_OBJECT_BYTES = 24
ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")

JOINED = "is several files joined together; only the first could be read"
MAX_BYTES_BEHIND = 4096  # padding and tags of other kinds
FLAC_START = b"fLaC\0\0\0\x22"  # with the header of its first block, which has 34 bytes
START_BYTES = 12
SCANNED_BYTES = 1 << 20
CHUNKS_BEHIND = frozenset({b"LIST", b"id3 ", b"ID3 ", b"fact", b"cue ", b"bext", b"PAD ", b"JUNK", b"junk", b"smpl"})

FLV_TAG_HEADER_BYTES = 11
FLV_TAGS = frozenset({8, 9, 18})


def mp4_problem(file: BinaryIO, size: int) -> str | None:
    """Walk the outermost boxes of an MP4 or QuickTime file: each must end within the file."""
    place = 0
    seen: set[bytes] = set()
    while place + 8 <= size:
        file.seek(place)
        header = file.read(16)
        length, name = struct.unpack_from(">I4s", header)
        if seen >= MP4_BOXES and name not in MP4_OUTERMOST:
            return None  # a tag or other bytes behind the last box
        if name in seen and name in MP4_ONCE:
            return JOINED
        seen.add(name)
        if length == 1 and len(header) == 16:
            length = struct.unpack_from(">Q", header, 8)[0]
        elif length == 0:
            return None  # to the end of the file
        if length < 8:
            return f"damaged: what is at byte {place} is no box"
        if place + length > size:
            what = f"the box {name.decode('ascii', 'replace')!r}"
            return CUT.format(what=what, place=place, promised=length, present=size - place)
        place += length
    return None


def matroska_problem(file: BinaryIO, size: int) -> str | None:
    """Walk the elements of a Matroska or WebM file, and those inside clusters of unknown length."""
    place, end = 0, -1
    in_cluster = False
    segments = 0
    for _ in range(MAX_ELEMENTS):
        if place >= size:
            return None
        file.seek(place)
        found = _element(file.read(EBML_HEADER_BYTES))
        if found is None:
            return None if place == end else f"cut off or damaged at byte {place}"
        element, header, length = found
        if place == end and element not in _OUTER:
            return None  # bytes behind the last element
        if element not in _OUTER and element not in _ANYWHERE and not (in_cluster and element in _IN_CLUSTER):
            return f"damaged: element {element:#x} at byte {place} does not belong there"
        if length is not None and place + header + length > size:
            what = f"element {element:#x}"
            return CUT.format(what=what, place=place, promised=header + length, present=size - place)
        if element in _OUTER:
            in_cluster = element == CLUSTER
        if element == SEGMENT:
            if segments:
                return JOINED
            segments += 1
            end = -1 if length is None else place + header + length
        if length is None or element in (SEGMENT, CLUSTER):
            place += header  # also inside a cluster of known length: a lost block shows there
        else:
            place += header + length
    return "has more elements than a clip needs"


def _element(start: bytes) -> tuple[int, int, int | None] | None:
    """An element's id, bytes of its header, and bytes of its content (None: unknown); None where it cannot be one."""
    if not start or start[0] < 0x10:
        return None
    id_bytes = 9 - start[0].bit_length()
    if len(start) <= id_bytes or not start[id_bytes]:
        return None
    length_bytes = 9 - start[id_bytes].bit_length()
    end = id_bytes + length_bytes
    if len(start) < end:
        return None
    mask = (1 << 7 * length_bytes) - 1
    length = int.from_bytes(start[id_bytes:end], "big") & mask
    return int.from_bytes(start[:id_bytes], "big"), end, None if length == mask else length


def transport_stream_problem(file: BinaryIO, size: int) -> str | None:
    """Look at every packet of a transport stream: where it must be, and numbered in order for each of its streams."""
    if size % TS_PACKET_BYTES:
        return f"cut off or damaged: {size} bytes are no whole number of packets of {TS_PACKET_BYTES}"
    last: dict[int, int] = {}
    file.seek(0)
    place = 0
    while block := file.read(TS_PACKET_BYTES * TS_BLOCK_PACKETS):
        packets = np.frombuffer(block[: len(block) // TS_PACKET_BYTES * TS_PACKET_BYTES], np.uint8)
        packets = packets.reshape(-1, TS_PACKET_BYTES)
        lost = np.flatnonzero(packets[:, 0] != TS_SYNC)
        if len(lost):
            return f"damaged: what is at byte {place + int(lost[0]) * TS_PACKET_BYTES} is no packet"
        streams = (packets[:, 1].astype(np.int32) & 0x1F) << 8 | packets[:, 2]
        has_payload = packets[:, 3] & 0x10 > 0
        counters = packets[:, 3] & 0x0F
        # Of a packet with an adaptation field, a flag in it says that the numbers begin anew.
        jumps = (packets[:, 3] & 0x20 > 0) & (packets[:, 4] > 0) & (packets[:, 5] & 0x80 > 0)
        for stream in np.unique(streams[has_payload]).tolist():
            if stream == TS_EMPTY_PID:
                continue
            mine = np.flatnonzero((streams == stream) & has_payload)
            numbers = counters[mine].astype(np.int32)
            before = np.concatenate([[last.get(stream, int(numbers[0]) - 1)], numbers[:-1]])
            steps = (numbers - before) % 16  # 0: the same packet once more, which is allowed
            broken = np.flatnonzero((steps > 1) & ~jumps[mine])
            if len(broken):
                return f"damaged: packets are missing before byte {place + int(mine[broken[0]]) * TS_PACKET_BYTES}"
            last[stream] = int(numbers[-1])
        place += len(block)
    return None


def flv_problem(file: BinaryIO, size: int) -> str | None:
    """Walk the tags of a Flash video file: each is followed by its own length."""
    file.seek(5)
    place = int.from_bytes(file.read(4), "big") + 4
    while place < size:
        file.seek(place)
        header = file.read(FLV_TAG_HEADER_BYTES)
        if len(header) < FLV_TAG_HEADER_BYTES or header[0] & 0x1F not in FLV_TAGS:
            return f"cut off or damaged at byte {place}"
        length = FLV_TAG_HEADER_BYTES + int.from_bytes(header[1:4], "big")
        file.seek(place + length)
        if int.from_bytes(file.read(4), "big") != length:
            return f"cut off or damaged at byte {place + length}"
        place += length + 4
    return None


def asf_problem(file: BinaryIO, size: int) -> str | None:
    """Walk the outermost objects of a Windows Media file, up to the one with the sound: it must end within the file."""
    place = 0
    data_is_whole = False
    while place + ASF_OBJECT_BYTES <= size:
        file.seek(place)
        name, length = struct.unpack("<16sQ", file.read(ASF_OBJECT_BYTES))
        if place and name == ASF_HEADER:
            return JOINED
        if length < ASF_OBJECT_BYTES:
            return None  # written as a stream, before the length was known
        if place + length > size:
            if data_is_whole:
                return None  # a tag or other bytes behind the sound
            return CUT.format(what="the object", place=place, promised=length, present=size - place)
        data_is_whole = data_is_whole or name == ASF_DATA
        place += length
    return None


def avi_problem(file: BinaryIO, size: int) -> str | None:
    """Walk the RIFF chunks of an AVI file, of which a long one has several."""
    place = 0
    while place + 12 <= size:
        file.seek(place)
        name, length, kind = struct.unpack("<4sI4s", file.read(12))
        if name != b"RIFF" or not length:
            return None
        if place and kind == b"AVI ":
            return JOINED
        if place + 8 + length > size:
            return CUT.format(what="the chunk 'RIFF'", place=place, promised=length + 8, present=size - place)
        place += 8 + length + length % 2
    return None


def riff_problem(file: BinaryIO, size: int) -> str | None:
    """Look for the sound of a wav file: all of it must be there, with no other sound behind it."""
    found = _data_chunk(file)
    if found is None:
        return None  # a writer without padding: the decoder finds it, or says so
    place, length = found
    present = size - place
    if length == 0:
        file.seek(place)
        is_empty = not present or file.read(4) in CHUNKS_BEHIND
        return "holds no samples: its data chunk is empty" if is_empty else None
    if length >= STREAMED_BYTES:
        return None
    if present < length:
        return CUT.format(what="the data chunk", place=place - 8, promised=length, present=present)
    return _behind(file, size, place + length + length % 2)


def _data_chunk(file: BinaryIO) -> tuple[int, int] | None:
    """Where the samples of a wav file begin, and how many bytes its header says they are."""
    place = 12
    wide = 0
    while True:
        file.seek(place)
        header = file.read(8)
        if len(header) < 8:
            return None
        name, length = struct.unpack("<4sI", header)
        if name == b"ds64":
            wide = int.from_bytes(file.read(16)[8:16], "little")
        if name == b"data":
            return place + 8, wide if wide and length >= STREAMED_BYTES else length
        place += 8 + length + length % 2


def _behind(file: BinaryIO, size: int, place: int) -> str | None:
    """Look at what stands behind the sound of a wav file: more chunks, or a little of whatever it be."""
    while size - place > MAX_BYTES_BEHIND:
        file.seek(place)
        name, length = struct.unpack("<4sI", file.read(8))
        if name in {b"RIFF", b"RF64"}:
            return JOINED
        if not name.decode("latin-1").isprintable() or place + 8 + length > size:
            return f"{size - place} bytes stand behind its sound, which are not read; is its header wrong?"
        place += 8 + length + length % 2
    return None


def flac_problem(file: BinaryIO, _size: int) -> str | None:
    """Look for the start of a second flac file, which a decoder that knows the first's length does not reach."""
    file.seek(4)
    return _second_start(file, FLAC_START)


def repeated_start_problem(file: BinaryIO, _size: int) -> str | None:
    """Look for the first bytes of a file once more: a second file of its kind."""
    return _second_start(file, file.read(START_BYTES))


def _second_start(file: BinaryIO, start: bytes) -> str | None:
    tail = b""
    while chunk := file.read(SCANNED_BYTES):
        if start in chunk or start in tail + chunk[: len(start)]:
            return JOINED
        tail = chunk[-len(start) :]
    return None


def iff_problem(file: BinaryIO, _size: int) -> str | None:
    """Look behind the end of an aiff file for another one."""
    file.seek(4)
    length = int.from_bytes(file.read(4), "big")
    return _joined(file, 8 + length + length % 2, (b"FORM",))


def au_problem(file: BinaryIO, _size: int) -> str | None:
    """Look behind the samples of a Sun audio file for another one."""
    start = file.read(12)
    byte_order = ">" if start.startswith(b".snd") else "<"
    if len(start) < 12:
        return None
    offset, length = struct.unpack_from(f"{byte_order}II", start, 4)
    return None if length == UNKNOWN_LENGTH else _joined(file, offset + length, (start[:4],))


def _joined(file: BinaryIO, end: int, starts: tuple[bytes, ...]) -> str | None:
    file.seek(end)
    return JOINED if file.read(4) in starts else None


PROBLEMS: Mapping[str, Callable[[BinaryIO, int], str | None]] = {
    "mov,mp4,m4a,3gp,3g2,mj2": mp4_problem,
    "matroska,webm": matroska_problem,
    "mpegts": transport_stream_problem,
    "flv": flv_problem,
    "asf": asf_problem,
    "avi": avi_problem,
    "wav": riff_problem,
    "aiff": iff_problem,
    "tta": repeated_start_problem,
    "caf": repeated_start_problem,
    "w64": repeated_start_problem,
}
"""The check of each container, by the name that FFmpeg gives to it."""

BEHIND: Mapping[bytes, Callable[[BinaryIO, int], str | None]] = {
    b"RIFF": riff_problem,
    b"RF64": riff_problem,
    b"fLaC": flac_problem,
    b".snd": au_problem,
    b"dns.": au_problem,
    b"riff": repeated_start_problem,
    b"caff": repeated_start_problem,
}
"""The checks of what libsndfile may leave unread, by the first bytes of a file."""
