"""Checks that a container file is complete, by the lengths in its structure: decoders play truncated files.

Each function takes an open file and its size in bytes, and returns why the file is rejected, or None. Only the
structure (boxes, elements, packets) is read, not the audio inside.
Sources: ISO/IEC 14496-12 (MP4), RFC 8794 and 9559 (Matroska), ISO/IEC 13818-1 (transport stream), Adobe's FLV
specification.
"""

import struct
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from hfprep.inputs.audio.chunks import (
    CUT,
    JOINED,
    Check,
    bytes_behind,
    caf_problem,
    iff_problem,
    repeated_start_problem,
    riff_problem,
    w64_problem,
)

MAX_ELEMENTS = 1 << 22  # no clip has more

MP4_BOXES = frozenset({b"moov", b"mdat"})
MP4_OUTERMOST = MP4_BOXES | {
    b"ftyp", b"styp", b"moof", b"mfra", b"free", b"skip", b"wide", b"uuid", b"meta", b"sidx", b"ssix", b"prft", b"emsg",
    b"pdin", b"udta", b"pnot",
}  # fmt: skip
MP4_ONCE = frozenset({b"moov", b"ftyp"})

# Matroska elements that contain the ones checked, and those that only occur at the top level or in a segment.
EBML, SEGMENT, CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
_OUTER = frozenset(
    {EBML, SEGMENT, CLUSTER, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367}
)
_IN_CLUSTER = frozenset({0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF})
_ANYWHERE = frozenset({0xEC, 0xBF})  # void, checksum
EBML_HEADER_BYTES = 12

TS_PACKET_BYTES, TS_SYNC, TS_EMPTY_PID = 188, 0x47, 0x1FFF
TS_BLOCK_PACKETS = 1 << 13

ASF_OBJECT_BYTES = 24
ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")


PROGRAM_END, PROGRAM_END_WITHIN_BYTES, PROGRAM_PACK_BYTES = b"\0\0\1\xb9", 4096, 2048
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
            return bytes_behind(size, place)
        if name in seen and name in MP4_ONCE:
            return JOINED
        seen.add(name)
        if length == 1 and len(header) == 16:
            length = struct.unpack_from(">Q", header, 8)[0]
        elif length == 0:
            return None  # to the end of the file
        if length < 8:
            return f"damaged: there is no box at byte {place}"
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
            return bytes_behind(size, place) if place == end else f"cut off or damaged at byte {place}"
        element, header, length = found
        if place == end and element not in _OUTER:
            return bytes_behind(size, place)
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
            place += header  # also into a cluster of known length, to notice lost blocks
        else:
            place += header + length
    return "has more elements than any clip should"


def _element(start: bytes) -> tuple[int, int, int | None] | None:
    """An element's id, header size, and content size in bytes (None: unknown); None if it is not an element."""
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
    """Check every packet of a transport stream: its position, and the numbering within its stream."""
    if size % TS_PACKET_BYTES:
        return f"cut off or damaged: {size} bytes is not a multiple of the packet size, {TS_PACKET_BYTES}"
    last: dict[int, int] = {}
    file.seek(0)
    place = 0
    while block := file.read(TS_PACKET_BYTES * TS_BLOCK_PACKETS):
        packets = np.frombuffer(block[: len(block) // TS_PACKET_BYTES * TS_PACKET_BYTES], np.uint8)
        packets = packets.reshape(-1, TS_PACKET_BYTES)
        lost = np.flatnonzero(packets[:, 0] != TS_SYNC)
        if len(lost):
            return f"damaged: there is no packet at byte {place + int(lost[0]) * TS_PACKET_BYTES}"
        streams = (packets[:, 1].astype(np.int32) & 0x1F) << 8 | packets[:, 2]
        has_payload = packets[:, 3] & 0x10 > 0
        counters = packets[:, 3] & 0x0F
        # A flag in a packet's adaptation field says that numbering restarts.
        jumps = (packets[:, 3] & 0x20 > 0) & (packets[:, 4] > 0) & (packets[:, 5] & 0x80 > 0)
        for stream in np.unique(streams[has_payload]).tolist():
            if stream == TS_EMPTY_PID:
                continue
            mine = np.flatnonzero((streams == stream) & has_payload)
            numbers = counters[mine].astype(np.int32)
            before = np.concatenate([[last.get(stream, int(numbers[0]) - 1)], numbers[:-1]])
            steps = (numbers - before) % 16  # 0: a repeated packet, which is allowed
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
    """Walk the outermost objects of a Windows Media file; the one with the audio must end within the file."""
    place = 0
    data_is_whole = False
    while place + ASF_OBJECT_BYTES <= size:
        file.seek(place)
        name, length = struct.unpack("<16sQ", file.read(ASF_OBJECT_BYTES))
        if place and name == ASF_HEADER:
            return JOINED
        if length < ASF_OBJECT_BYTES:
            return None  # written as a stream, without knowing the length
        if place + length > size:
            if data_is_whole:
                return bytes_behind(size, place)
            return CUT.format(what="the object", place=place, promised=length, present=size - place)
        data_is_whole = data_is_whole or name == ASF_DATA
        place += length
    return None


def avi_problem(file: BinaryIO, size: int) -> str | None:
    """Walk the RIFF chunks of an AVI file (a long one has several), and the chunks in them."""
    place = 0
    while place + 12 <= size:
        file.seek(place)
        name, length, kind = struct.unpack("<4sI4s", file.read(12))
        if name != b"RIFF" or not length:
            return bytes_behind(size, place) if place else None
        if place and kind != b"AVIX":
            return JOINED
        if place + 8 + length > size:
            return CUT.format(what="the chunk 'RIFF'", place=place, promised=length + 8, present=size - place)
        lost = _lost_in_list(file, place + 12, place + 8 + length)
        if lost is not None:
            return f"damaged: there is no chunk at byte {lost}"
        place += 8 + length + length % 2
    return None


def _lost_in_list(file: BinaryIO, place: int, end: int) -> int | None:
    """Where a chunk of a RIFF list, or of the lists in it, is invalid; None if all are valid."""
    while end - place >= 8:
        file.seek(place)
        name, length = struct.unpack("<4sI", file.read(8))
        if not name.decode("latin-1").isprintable() or place + 8 + length > end:
            return place
        lost = _lost_in_list(file, place + 12, place + 8 + length) if name == b"LIST" else None
        if lost is not None:
            return lost
        place += 8 + length + length % 2
    return None


def program_stream_problem(file: BinaryIO, size: int) -> str | None:
    """Check for the end code of an MPEG program stream, or for complete packs: there is no other sign of its length."""
    file.seek(max(0, size - PROGRAM_END_WITHIN_BYTES))
    is_ended = file.read().rstrip(b"\0\xff").endswith(PROGRAM_END) or size % PROGRAM_PACK_BYTES == 0
    return None if is_ended else "cut off, or of unknown length: its stream has no end code; convert it to flac"


PROBLEMS: Mapping[str, Check] = {
    "mov,mp4,m4a,3gp,3g2,mj2": mp4_problem,
    "matroska,webm": matroska_problem,
    "mpegts": transport_stream_problem,
    "flv": flv_problem,
    "mpeg": program_stream_problem,
    "asf": asf_problem,
    "avi": avi_problem,
    "wav": riff_problem,
    "aiff": iff_problem,
    "tta": repeated_start_problem,
    "caf": caf_problem,
    "w64": w64_problem,
}
"""The check of each container, by FFmpeg's name for it."""
