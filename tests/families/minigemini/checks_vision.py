"""The vision side against slow, literal references and the library's own classes."""

import inside
import numpy as np
import torch
from torch.nn import functional


def seeded(module):
    """The module with all parameters drawn anew."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        values = torch.randn(parameter.shape, generator=generator) * 0.2
        parameter.data = (
            values + 1 if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")) else values
        )
    return module.eval()


@torch.no_grad()
def check_mining_equals_loops():
    """softmax(q k / sqrt(d)) v, one patch and one of its pixels at a time."""
    model = inside.load(inside.make("minigemini-7b")).loaded.images
    side, square, channels, width = 3, 4, 56, 32
    coarse = torch.randn(side * side, width, generator=torch.Generator().manual_seed(1))
    fine = torch.randn(1, channels, side * square, side * square, generator=torch.Generator().manual_seed(2))
    expected = torch.zeros(side * side, width)
    for row in range(side):
        for column in range(side):
            query = model.vlm_uni_query_projector(coarse[row * side + column])
            pixels = [
                fine[0, :, row * square + y, column * square + x]
                for y in range(square)
                for x in range(square)
            ]
            scores = [float(query @ model.vlm_uni_aux_projector(pixel)) / width**0.5 for pixel in pixels]
            weights = np.exp(np.array(scores) - max(scores))
            weights /= weights.sum()
            for weight, pixel in zip(weights, pixels):  # noqa: B905 - Python 3.8
                expected[row * side + column] += float(weight) * model.vlm_uni_val_projector(pixel)
    assert torch.allclose(model.mine(coarse, fine), expected, atol=1e-5)


@torch.no_grad()
def check_clip_equals_the_library():
    from transformers import CLIPVisionConfig, CLIPVisionModel

    towers = inside.part("towers")
    for activation, select in (("quick_gelu", -2), ("gelu", -1), ("quick_gelu", 0)):
        config = CLIPVisionConfig(
            hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, image_size=42,
            patch_size=14, hidden_act=activation, layer_norm_eps=1e-3,
        )  # fmt: skip
        library = seeded(CLIPVisionModel(config))
        weights = {name.replace("vision_model.", ""): value for name, value in library.state_dict().items()}
        shapes = {name: tuple(value.shape) for name, value in weights.items()}
        tower = towers.ClipTower(towers.clip_geometry(shapes, config.to_dict()), select).eval()
        known = set(dict(tower.named_parameters()))
        tower.load_state_dict({name: value for name, value in weights.items() if name in known})
        images = torch.randn(2, 3, 42, 42, generator=torch.Generator().manual_seed(3))
        expected = library(images, output_hidden_states=True).hidden_states[select]
        assert torch.allclose(tower(images), expected, atol=1e-5), (activation, select)


@torch.no_grad()
def check_convnext_equals_a_literal_one():
    """Layer norms by hand, pixels as rows of a matrix, blocks in a plain loop."""
    towers = inside.part("towers")
    for eps in (1e-6, 0.3):
        tower = seeded(towers.ConvNeXtTower(towers.ConvNeXtGeometry((2, 1, 1, 2), (6, 8, 10, 12), eps)))
        weights = dict(tower.named_parameters())
        images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))

        def norm(values, name, weights=weights, eps=eps):
            centred = values - values.mean(1, keepdim=True)
            scaled = centred / (centred.pow(2).mean(1, keepdim=True) + eps).sqrt()
            return scaled * weights[name + ".weight"][:, None, None] + weights[name + ".bias"][:, None, None]

        hidden = functional.conv2d(
            images, weights["vision_stem.0.weight"], weights["vision_stem.0.bias"], stride=4
        )
        hidden = norm(hidden, "vision_stem.1")
        outputs = []
        for stage, depth in enumerate((2, 1, 1, 2)):
            at = f"vision_stages.{stage}."
            if stage:
                hidden = norm(hidden, at + "downsample.0")
                hidden = functional.conv2d(
                    hidden, weights[at + "downsample.1.weight"], weights[at + "downsample.1.bias"], stride=2
                )
            for block in range(depth):
                name = f"{at}blocks.{block}."
                inner = functional.conv2d(
                    hidden,
                    weights[name + "conv_dw.weight"],
                    weights[name + "conv_dw.bias"],
                    padding=3,
                    groups=hidden.shape[1],
                )
                rows = norm(inner, name + "norm").flatten(2)[0].T
                rows = functional.gelu(
                    rows @ weights[name + "mlp.fc1.weight"].T + weights[name + "mlp.fc1.bias"]
                )
                rows = rows @ weights[name + "mlp.fc2.weight"].T + weights[name + "mlp.fc2.bias"]
                hidden = hidden + (rows * weights[name + "gamma"]).T.reshape(hidden.shape)
            outputs.append(
                functional.interpolate(hidden, size=(16, 16), mode="bilinear", align_corners=False)
            )
        assert torch.allclose(tower(images), torch.cat(outputs, 1), atol=1e-4), eps


def check_geometry_comes_from_the_weights():
    towers = inside.part("towers")
    shapes = {
        f"vision_stages.{s}.blocks.{b}.conv_dw.weight": (w, 1, 7, 7)
        for s, (w, d) in enumerate([(384, 3), (768, 4)])
        for b in range(d)
    }
    assert towers.convnext_geometry(shapes, "my-tower") == ((3, 4), (384, 768), 1e-5)
    shapes = {name: (shape[0] // 2, 1, 7, 7) for name, shape in shapes.items()}
    assert towers.convnext_geometry(shapes, "convnext-large-d-320").eps == 1e-6
    assert towers.convnext_geometry(shapes, "a/convnext-xxlarge").eps == 1e-5


def check_preprocessing_equals_the_library():
    """Bit for bit, for tall, wide, tiny and large pictures, padded and not."""
    from PIL import Image
    from transformers import CLIPImageProcessor

    preprocess = inside.part("preprocess")
    library = CLIPImageProcessor(size={"shortest_edge": 128}, crop_size={"height": 128, "width": 128})
    for height, width in ((50, 80), (301, 97), (128, 128), (7, 200), (129, 64)):
        image = Image.fromarray(inside.picture(height, width))
        ours = preprocess.Preprocessor({}, view=56, detail=128, pad=False)(image)
        assert torch.equal(ours.detail[0], library(image, return_tensors="pt")["pixel_values"][0]), (
            height,
            width,
        )
        side = max(height, width)
        square = np.empty((side, side, 3), np.uint8)
        square[:] = (122, 116, 104)
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = np.asarray(image)
        expected = library(Image.fromarray(square), return_tensors="pt")["pixel_values"]
        ours = preprocess.Preprocessor({}, view=56, detail=128, pad=True)(image)
        assert torch.equal(ours.detail, expected), (height, width)
        shrunk = functional.interpolate(expected, size=(56, 56), mode="bilinear", align_corners=False)
        assert torch.equal(ours.views, shrunk), (height, width)


def check_hd_views_are_tiles_row_by_row_then_the_whole():
    from PIL import Image

    preprocess = inside.part("preprocess")
    colours = np.array([[10, 80], [150, 230]], np.uint8).repeat(64, 0).repeat(64, 1)
    image = Image.fromarray(np.stack([colours] * 3, -1))
    pixels = preprocess.Preprocessor({}, view=56, detail=128, pad=True, grid=2, whole=True)(image)
    assert pixels.views.shape == (5, 3, 56, 56)
    middle = pixels.views[:4, 0, 28, 28]
    assert (middle.diff() > 0).all(), middle  # 10, 80, 150, 230: row by row
    assert torch.allclose(pixels.views[4].mean(), pixels.views[:4].mean(), atol=1e-2)


@torch.no_grad()
def check_hd_tokens_are_the_whole_then_tile_after_tile():
    """Each group of tokens depends on its own part of the picture only where it must."""
    model = inside.load(inside.make("minigemini-7b-hd"))
    tokens = model.loaded.images
    seen = []
    original = tokens.clip.forward

    def marked(images):
        seen.append(images.shape[0])
        return original(images) * 0 + torch.arange(float(len(images)))[:, None, None]

    tokens.clip.forward = marked
    tokens.mine = lambda coarse, fine: torch.zeros_like(coarse)
    tokens.mm_projector = torch.nn.Sequential(torch.nn.Linear(32, 32))
    tokens.mm_projector[0].weight.data = torch.eye(32)
    tokens.mm_projector[0].bias.data.zero_()
    pixels = model.loaded.preprocess(__import__("PIL.Image").Image.fromarray(inside.picture()))
    order = tokens(pixels)[:, 0].reshape(5, 16)
    assert seen == [5]
    assert order[:, 0].tolist() == [4, 0, 1, 2, 3]
    assert (order == order[:, :1]).all()
