"""Pictures of what was learned, for TensorBoard: each state's value, and the action chosen there.

Drawn with Pillow: the two take 25 ms, with Matplotlib 120 and half a second for its import.
"""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from environments import action_names, observation_names

SIZE = WIDTH, HEIGHT = 460, 320  # pixels; TensorBoard shows 350 of them across
LEFT, TOP, RIGHT, BOTTOM = 70, 34, 346, 272  # of the plot itself
GRID = 81  # the Q values are computed for GRID * GRID states, and interpolated between them
MOST = 1e6  # an observed number that may be larger, or infinite, can't be an axis
VIRIDIS = "440154472c7a3b518b2c718e21908d27ad815cc863aadc32fde725"
# Okabe and Ito's eight colours, told apart by the colour-blind, too.
ACTION_COLOURS = "0072b2dddddde69f00009e73cc79a756b4e9d55e00f0e442"


def draw_pictures(env, q_function):
    """Draw what a policy of two observed numbers thinks of every state.

    Args:
        env: gym environment; its observation space says how far the axes reach.
        q_function: function of observations, float32 (batch, 2), to Q values (batch, n_actions).

    Returns:
        dict of PNG files, bytes: `value_function`, the largest Q value of each state, and `policy`,
        the action that has it; none unless there are two bounded numbers, and finite Q values.
    """
    low, high = env.observation_space.low, env.observation_space.high
    if low.shape != (2,) or not max(abs(low).max(), abs(high).max()) < MOST:
        return {}
    q_values = interpolated(grid_q_values(q_function, low, high))
    if not np.isfinite(q_values).all():
        return {}
    pictures = {
        "value_function": value_function_picture(q_values.max(axis=-1)),
        "policy": policy_picture(q_values.argmax(axis=-1), action_names(env)),
    }
    for picture in pictures.values():
        draw_axes(picture, low, high, observation_names(env))
    return {tag: png(picture) for tag, picture in pictures.items()}


def grid_q_values(q_function, low, high):
    """The Q values on a grid of states, (GRID, GRID, n_actions): rows go down the second axis."""
    across = np.linspace(low[0], high[0], GRID, dtype=np.float32)
    down = np.linspace(high[1], low[1], GRID, dtype=np.float32)
    states = np.stack(np.meshgrid(across, down), axis=-1)
    return q_function(states.reshape(-1, 2)).reshape(GRID, GRID, -1)


def interpolated(grid):
    """Each layer of (GRID, GRID, n) enlarged to the plot's size."""
    size, smooth = (RIGHT - LEFT, BOTTOM - TOP), Image.Resampling.BILINEAR
    layers = [Image.fromarray(np.ascontiguousarray(layer)) for layer in np.moveaxis(grid, -1, 0)]
    return np.stack([np.asarray(layer.resize(size, smooth)) for layer in layers], axis=-1)


def value_function_picture(values):
    """A height map with contour lines, and the scale of its colours."""
    least, most = float(values.min()), float(values.max())
    span = max(most - least, 1e-6)
    colours = viridis((values - least) / span)
    marks = ticks(least, most)
    if len(marks) > 1:
        level = np.floor(values / (marks[1] - marks[0]) * 2)
        edges = (level[:-1, :-1] != level[1:, :-1]) | (level[:-1, :-1] != level[:-1, 1:])
        colours[:-1, :-1][edges] = colours[:-1, :-1][edges] // 4 * 3
    picture, pen, font = blank("largest Q value")
    picture.paste(Image.fromarray(colours), (LEFT, TOP))
    scale = np.repeat(np.linspace(1, 0, BOTTOM - TOP)[:, None], 16, axis=1)
    picture.paste(Image.fromarray(viridis(scale)), (RIGHT + 14, TOP))
    for mark in marks:
        height = BOTTOM - (mark - least) / span * (BOTTOM - TOP)
        pen.line((RIGHT + 30, height, RIGHT + 35, height), "black")
        pen.text((RIGHT + 39, height), f"{mark:g}", "black", font, anchor="lm")
    return picture


def policy_picture(actions, names):
    """A map of the states, coloured by the action chosen there, and what the colours mean."""
    colours = palette(ACTION_COLOURS)
    picture, pen, font = blank("action with the largest Q value")
    picture.paste(Image.fromarray(colours[actions % 8]), (LEFT, TOP))
    for number, name in enumerate(names):
        top = TOP + 24 * number
        pen.rectangle((RIGHT + 12, top, RIGHT + 26, top + 14), tuple(colours[number % 8]), "black")
        pen.text((RIGHT + 34, top + 7), name, "black", font, anchor="lm")
    return picture


def blank(title):
    """A white picture with a title; its pen and its font."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    pen.text(((LEFT + RIGHT) / 2, TOP / 2), title, "black", ImageFont.load_default(16), anchor="mm")
    return picture, pen, font


def draw_axes(picture, low, high, names):
    """A frame around the plot, with ticks, their numbers, and a name along each axis."""
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    pen.rectangle((LEFT, TOP, RIGHT, BOTTOM), outline="black")
    for mark in ticks(low[0], high[0]):
        x = LEFT + (mark - low[0]) / (high[0] - low[0]) * (RIGHT - LEFT)
        pen.line((x, BOTTOM, x, BOTTOM + 5), "black")
        pen.text((x, BOTTOM + 14), f"{mark:g}", "black", font, anchor="mm")
    for mark in ticks(low[1], high[1]):
        y = BOTTOM - (mark - low[1]) / (high[1] - low[1]) * (BOTTOM - TOP)
        pen.line((LEFT - 5, y, LEFT, y), "black")
        pen.text((LEFT - 8, y), f"{mark:g}", "black", font, anchor="rm")
    pen.text(((LEFT + RIGHT) / 2, HEIGHT - 16), names[0], "black", font, anchor="mm")
    upright = Image.new("RGB", (BOTTOM - TOP, 24), "white")
    ImageDraw.Draw(upright).text((upright.width / 2, 12), names[1], "black", font, anchor="mm")
    picture.paste(upright.rotate(90, expand=True), (0, TOP))


def ticks(low, high):
    """Three to nine round numbers from `low` to `high`; `low` alone if they are much the same."""
    span = float(high - low)
    if not span > 1e-6 * max(abs(low), abs(high), 1e-6):
        return [float(low)]
    power = 10.0 ** np.floor(np.log10(span))
    step = next(power * part for part in (0.1, 0.2, 0.5, 1, 2) if span / (power * part) < 9)
    numbers = np.arange(np.ceil(low / step), np.floor(high / step) + 1)
    return [round(float(number * step), 12) + 0.0 for number in numbers]  # 0.0, never -0.0


def viridis(shares):
    """The colours, uint8 (…, 3), of numbers from 0 to 1, (…): Matplotlib's viridis, nearly."""
    anchors = palette(VIRIDIS)
    position, places = np.linspace(0, len(anchors) - 1, 256), np.arange(len(anchors))
    table = [np.interp(position, places, anchors[:, part]) for part in range(3)]
    return np.stack(table, axis=-1).astype(np.uint8)[(shares * 255).astype(np.uint8)]


def palette(digits):
    """Hexadecimal colours, six digits each, as an array uint8 (n, 3)."""
    return np.frombuffer(bytes.fromhex(digits), np.uint8).reshape(-1, 3)


def png(picture):
    """The picture as a PNG file, bytes."""
    content = io.BytesIO()
    picture.save(content, "PNG", compress_level=4)  # 6 takes three times as long
    return content.getvalue()
