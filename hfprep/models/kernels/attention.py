"""Attention in one kernel, without a score matrix, with relative distances, key positions and lengths.

Provides the kernel `attend` (see `operators.attend`). Source: Dao et al. 2022 (FlashAttention), Milakov & Gimelshein
2018 (the running maximum).
"""

# fmt: off
import triton
import triton.language as tl


@triton.jit
def _scan(acc, total, largest, query, keys, values, placed, products, key_bias, edge, rows, begin, end, length,
          key_stride, value_stride, placed_stride, scale, LEFT: tl.constexpr, RIGHT: tl.constexpr, D: tl.constexpr,
          DIMS: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr, PLACED: tl.constexpr, PRECISION: tl.constexpr):
    """Continue the online softmax over the keys from begin to end. BIAS: "none", "edge", "distance" or "key"."""
    dims = tl.arange(0, DIMS)
    wide = dims < D
    for start in range(begin, end, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        real = columns < length
        mask = real[None, :] & wide[:, None]
        key = tl.load(keys + columns[None, :] * key_stride + dims[:, None], mask=mask, other=0.0)
        if PLACED:
            place = placed + columns[None, :] * placed_stride + dims[:, None]
            key += tl.load(place, mask=mask, other=0.0)
        scores = tl.dot(query, key, input_precision=PRECISION) * scale
        if BIAS == "edge":
            scores += edge[:, None]
        if BIAS == "distance":
            distance = tl.minimum(tl.maximum(columns[None, :] - rows[:, None], -LEFT), RIGHT) + LEFT
            scores += tl.load(products[:, None] + distance).to(tl.float32)
        if BIAS == "key":
            scores += tl.load(key_bias + columns, mask=real, other=0.0)[None, :]
        scores = tl.where(real[None, :], scores, float("-inf"))
        highest = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - highest[:, None])
        shrink = tl.exp2(largest - highest)
        total = total * shrink + tl.sum(weights, 1)
        place = values + columns[:, None] * value_stride + dims[None, :]
        value = tl.load(place, mask=real[:, None] & wide[None, :], other=0.0)
        acc = tl.dot(weights.to(value.dtype), value, acc * shrink[:, None], input_precision=PRECISION)
        largest = highest
    return acc, total, largest


@triton.jit(do_not_specialize=["frames", "extra"])
def attend(queries, keys, values, placed, products, key_bias, lengths, out, heads, frames, extra,
           query_clip, query_row, key_clip, key_row, product_clip, product_row, placed_row, bias_head, scale,
           LEFT: tl.constexpr, RIGHT: tl.constexpr, SLOTS: tl.constexpr, D: tl.constexpr, DIMS: tl.constexpr,
           ROWS: tl.constexpr, BLOCK: tl.constexpr, RELATIVE: tl.constexpr, PLACED: tl.constexpr,
           KEY_BIAS: tl.constexpr, PRECISION: tl.constexpr):
    """ROWS queries of a head of a clip; scores and biases are base-2 exponents."""
    first = tl.program_id(0) * ROWS
    clip, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    length = tl.load(lengths + clip) + extra
    rows, dims = first + tl.arange(0, ROWS), tl.arange(0, DIMS)
    there = (rows < frames)[:, None] & (dims < D)[None, :]
    to = out + ((clip * frames + rows)[:, None] * heads + head) * D + dims[None, :]
    read = queries + clip * query_clip + head * D + rows[:, None] * query_row + dims[None, :]
    query = tl.load(read, mask=there, other=0.0)
    keys += clip * key_clip + head * D
    values += clip * key_clip + head * D
    placed += head * D
    key_bias += head * bias_head
    products += clip * product_clip + head * SLOTS + tl.minimum(rows, frames - 1) * product_row
    acc, total = tl.zeros([ROWS, DIMS], tl.float32), tl.zeros([ROWS], tl.float32)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    edge = total
    if RELATIVE:  # keys more than LEFT before all of these queries, keys in between, and keys beyond RIGHT
        near = tl.minimum(tl.maximum(first - LEFT + 1, 0) // BLOCK * BLOCK, length)
        far = tl.minimum((first + ROWS - 1 + RIGHT + BLOCK - 1) // BLOCK * BLOCK, length)
        edge = tl.load(products).to(tl.float32)
        acc, total, largest = _scan(acc, total, largest, query, keys, values, placed, products, key_bias, edge, rows,
                                    0, near, length, key_row, key_row, placed_row, scale, LEFT, RIGHT, D, DIMS, BLOCK,
                                    "edge", PLACED, PRECISION)
        acc, total, largest = _scan(acc, total, largest, query, keys, values, placed, products, key_bias, edge, rows,
                                    near, far, length, key_row, key_row, placed_row, scale, LEFT, RIGHT, D, DIMS, BLOCK,
                                    "distance", PLACED, PRECISION)
        edge = tl.load(products + LEFT + RIGHT).to(tl.float32)
        acc, total, largest = _scan(acc, total, largest, query, keys, values, placed, products, key_bias, edge, rows,
                                    tl.maximum(near, far), length, length, key_row, key_row, placed_row, scale, LEFT,
                                    RIGHT, D, DIMS, BLOCK, "edge", PLACED, PRECISION)
    else:
        acc, total, largest = _scan(acc, total, largest, query, keys, values, placed, products, key_bias, edge, rows,
                                    0, length, length, key_row, key_row, placed_row, scale, LEFT, RIGHT, D, DIMS, BLOCK,
                                    "key" if KEY_BIAS else "none", PLACED, PRECISION)
    tl.store(to, (acc / total[:, None]).to(out.dtype.element_ty), mask=there)
