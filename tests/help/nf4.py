"""NF4 with double quantisation (arXiv:2305.14314) as bitsandbytes has it, for weights to be compared with."""
import numpy as np

LEVELS = np.array([-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0, 0.0795803,
                   0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0], np.float32)
GROUP = 64
CHUNK = 1 << 20   # elements looked up at a time, so that they stay in a processor's cache


def dynamic_map():
    """bitsandbytes' signed 8-bit dynamic map, 7 exponent bits: create_dynamic_map()."""
    v = [0.0, 1.0]
    for i in range(7):
        edge = np.linspace(0.1, 1, 2 ** i + 1)
        mean = (edge[:-1] + edge[1:]) / 2
        v += list(10.0 ** (i - 6) * mean) + list(-(10.0 ** (i - 6)) * mean)
    return np.sort(np.array(v, np.float64))


def nearest(x, levels):
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x)]


def scales(top):
    """the groups' largest elements as they are kept: less their mean, in groups of 256, by the dynamic map"""
    shift = top.mean(dtype=np.float64)
    s = np.pad(top - shift, (0, -len(top) % 256)).reshape(-1, 256)
    most = np.abs(s).max(1, keepdims=True)
    most[most == 0] = 1
    return (nearest(s / most, dynamic_map()) * most).reshape(-1)[:len(top)] + shift


def nf4_dq(w):
    """What becomes of an array of f32: groups of 64 along the flat array."""
    flat = w.reshape(-1)
    x = np.pad(flat, (0, -len(flat) % GROUP)).astype(np.float32).reshape(-1, GROUP)
    top = np.abs(x).max(1)
    scale = scales(top).astype(np.float32)
    inverse = 1 / np.where(top, top, 1)
    borders = (LEVELS[1:] + LEVELS[:-1]) / 2
    for i in range(0, len(x), CHUNK // GROUP):
        part = slice(i, i + CHUNK // GROUP)
        y = x[part] * inverse[part, None]
        code = np.zeros(y.shape, np.uint8)
        for b in borders:
            code += y > b
        x[part] = LEVELS[code] * scale[part, None]
    return x.reshape(-1)[:len(flat)].reshape(w.shape)
