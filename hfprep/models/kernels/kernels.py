"""Triton kernels for the steps between the models' matmuls.

They run on tensors on a GPU, or on a CPU in Triton's interpreter, which the tests use. Rows are frames, channels are
innermost. A kernel reads a row once and writes it in the form (`Form`) of the next matmul. `lengths` marks the real
frames of each clip. Kernels are not specialised on numbers that change from batch to batch: each new kind of number
would be compiled again, which takes a second.
Source of the attention, which has no score matrix, with relative distances, key positions and lengths: Dao et al. 2022
(FlashAttention), Milakov & Gimelshein 2018 (the running maximum).
"""

# fmt: off
import triton
import triton.language as tl

# A row is scaled by a power of two so that its largest number has this exponent: below float16's maximum, 2^16, and far
# above its minimum, 2^-24, below which the low part of a number would lose bits.
TOP_EXPONENT = tl.constexpr(13)
LEAST_EXPONENT = tl.constexpr(27)  # lower bound of a row's biased float32 exponent, for rows of (nearly) zeros
HALF_MAX = tl.constexpr(65504.0)


@triton.jit
def _power(most):
    """2^k and 2^-k such that most * 2^k is in [2^13, 2^14)."""
    exponent = tl.maximum((most.to(tl.int32, bitcast=True) >> 23) & 255, LEAST_EXPONENT)
    up = ((-exponent + (254 + TOP_EXPONENT)) << 23).to(tl.float32, bitcast=True)
    down = ((exponent - TOP_EXPONENT) << 23).to(tl.float32, bitcast=True)
    return up, down


@triton.jit
def _store_parts(out, here, span, scaled, mask):
    """Write scaled numbers as low, high and high parts, `span` numbers apart."""
    high = scaled.to(tl.float16)
    tl.store(out + here, (scaled - high.to(tl.float32)).to(tl.float16), mask=mask)
    tl.store(out + here + span, high, mask=mask)
    tl.store(out + here + 2 * span, high, mask=mask)


@triton.jit
def _store_as_is(out, here, values, mask):
    """Write numbers in the type of `out`, clamped to the range of float16."""
    if out.dtype.element_ty == tl.float16:
        values = tl.clamp(values, -HALF_MAX, HALF_MAX, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out + here, values.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _store(out, scales, row, there, columns, wide, values, N: tl.constexpr, PARTS: tl.constexpr):
    """Write values (R, C) float32 as rows of N numbers in the form of a matmul's input."""
    mask = there[:, None] & wide[None, :]
    here = row[:, None] * (N * PARTS) + columns[None, :]
    if PARTS == 3:
        up, down = _power(tl.max(tl.where(mask, tl.abs(values), 0.0), 1))
        tl.store(scales + row, down, mask=there)
        _store_parts(out, here, N, values * up[:, None], mask)
    else:
        _store_as_is(out, here, values, mask)


@triton.jit
def _load_product(x, scales, factor, bias, row, there, columns, wide, offset, WIDTH: tl.constexpr,
                  SCALED: tl.constexpr, BIASED: tl.constexpr):
    """Columns offset + columns of a matmul's result (WIDTH columns), scaled and with bias: float32."""
    mask = there[:, None] & wide[None, :]
    values = tl.load(x + row[:, None] * WIDTH + offset + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    if SCALED:
        values *= (tl.load(scales + row, mask=there, other=0.0) * factor)[:, None]
    if BIASED:
        values += tl.load(bias + offset + columns, mask=wide, other=0.0)[None, :]
    return values


@triton.jit
def _normalise(values, weight, bias, columns, wide, eps, N: tl.constexpr):
    """LayerNorm of rows of N numbers; zero after them."""
    centred = tl.where(wide[None, :], values - (tl.sum(values, 1) / N)[:, None], 0.0)
    deviation = tl.rsqrt(tl.sum(centred * centred, 1) / N + eps)
    scale = tl.load(weight + columns, mask=wide, other=0.0)
    shift = tl.load(bias + columns, mask=wide, other=0.0)
    return centred * deviation[:, None] * scale[None, :] + shift[None, :]


@triton.jit(do_not_specialize=["rows"])
def add_norm(x, branch, scales, factor, branch_bias, gamma, weight, bias, out_x, out, out_scales, rows, share, eps,
             N: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, ADD: tl.constexpr, SCALED: tl.constexpr,
             BIASED: tl.constexpr, GAMMA: tl.constexpr, NORM: tl.constexpr, KEEP: tl.constexpr, FORM: tl.constexpr):
    """out_x = x + share * gamma * branch; out = its LayerNorm, or itself, in the form of a matmul's input."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    there, wide = row < rows, columns < N
    mask = there[:, None] & wide[None, :]
    here = row[:, None] * N + columns[None, :]
    values = tl.load(x + here, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        added = _load_product(branch, scales, factor, branch_bias, row, there, columns, wide, 0, N, SCALED, BIASED)
        if GAMMA:
            added *= tl.load(gamma + columns, mask=wide, other=0.0)[None, :]
        values += share * added
        if KEEP:
            tl.store(out_x + here, values, mask=mask)
    if NORM:
        values = _normalise(values, weight, bias, columns, wide, eps, N)
    if FORM > 0:
        _store(out, out_scales, row, there, columns, wide, values, N, FORM)


@triton.jit(do_not_specialize=["rows"])
def activate(x, scales, factor, bias, out, out_scales, rows,
             N: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, SCALED: tl.constexpr, BIASED: tl.constexpr,
             FUNCTION: tl.constexpr, FORM: tl.constexpr):
    """A matmul's result after "silu", "gelu" (exact), "glu" (of 2 N columns) or "none"."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    there, wide = row < rows, columns < N
    WIDTH: tl.constexpr = 2 * N if FUNCTION == "glu" else N
    values = _load_product(x, scales, factor, bias, row, there, columns, wide, 0, WIDTH, SCALED, BIASED)
    if FUNCTION == "glu":
        gate = _load_product(x, scales, factor, bias, row, there, columns, wide, N, WIDTH, SCALED, BIASED)
        values *= tl.sigmoid(gate)
    if FUNCTION == "silu":
        values *= tl.sigmoid(values)
    if FUNCTION == "gelu":
        values *= 0.5 * (1.0 + tl.erf(values * 0.7071067811865476))
    _store(out, out_scales, row, there, columns, wide, values, N, FORM)


@triton.jit(do_not_specialize=["frames", "left"])
def depthwise(x, taps, taps_bias, weight, bias, lengths, out, out_scales, frames, left, eps,
              TAPS: tl.constexpr, N: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, BIASED: tl.constexpr,
              SILU: tl.constexpr, FORM: tl.constexpr):
    """Depthwise convolution over time, LayerNorm, optional SiLU; frames after a clip's length are read as 0."""
    clip = tl.program_id(1).to(tl.int64)
    frame = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    wide = columns < N
    length = tl.load(lengths + clip)
    values = tl.zeros([ROWS, COLUMNS], tl.float32)
    if BIASED:
        values += tl.load(taps_bias + columns, mask=wide, other=0.0)[None, :]
    for tap in range(TAPS):
        at = frame + tap - left
        mask = ((at >= 0) & (at < length))[:, None] & wide[None, :]
        read = tl.load(x + (clip * frames + at)[:, None] * N + columns[None, :], mask=mask, other=0.0)
        values += read.to(tl.float32) * tl.load(taps + tap * N + columns, mask=wide, other=0.0)[None, :]
    values = _normalise(values, weight, bias, columns, wide, eps, N)
    if SILU:
        values *= tl.sigmoid(values)
    _store(out, out_scales, clip * frames + frame, frame < frames, columns, wide, values, N, FORM)


@triton.jit(do_not_specialize=["out_frames", "first_row", "first_channel"])
def subsample(x, kernels, bounds, out, out_scales, out_frames, first_row, first_channel, clip_stride,
              WIDTH: tl.constexpr, F: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
              FORM: tl.constexpr):
    """ReLU of a 3 x 3 convolution of stride 2 from one channel: rows of F frequencies with CHANNELS numbers each.

    `kernels` (C, 10): nine weights and a bias per channel; `bounds` (rows,): upper bounds of the results.
    """
    row = tl.program_id(0)
    clip, frame = (first_row + row) // out_frames, (first_row + row) % out_frames
    frequency = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wide = frequency < F
    channel = tl.arange(0, CHANNELS)
    base = x + clip.to(tl.int64) * clip_stride + 2 * frame * WIDTH + 2 * frequency
    kernel = kernels + (first_channel + channel) * 10
    values = tl.zeros([BLOCK, CHANNELS], tl.float32) + tl.load(kernel + 9)[None, :]
    for place in tl.static_range(9):
        read = tl.load(base + (place // 3) * WIDTH + place % 3, mask=wide, other=0.0).to(tl.float32)
        values += read[:, None] * tl.load(kernel + place)[None, :]
    values = tl.maximum(values, 0.0, propagate_nan=tl.PropagateNan.ALL)
    span = F * CHANNELS  # numbers per part of a row
    here = row.to(tl.int64) * span * FORM + frequency[:, None] * CHANNELS + channel[None, :]
    mask = wide[:, None] & (channel[None, :] >= 0)
    if FORM == 3:
        up, down = _power(tl.load(bounds + row))
        _store_parts(out, here, span, values * up, mask)
        tl.store(out_scales + row, down)
    else:
        _store_as_is(out, here, values, mask)


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
