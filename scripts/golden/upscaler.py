"""Golden files of upscalers: tiny ESRGANs of all three generations and a compact network, as spandrel loads and runs
them, and a picture in tiles by ComfyUI's rule. The dense blocks grow by 4 channels where published networks grow by
32; everything else is spandrel's."""

import itertools
from unittest import mock

import torch
from safetensors.torch import save_file
from spandrel import ModelLoader
from spandrel.architectures.Compact import Compact
from spandrel.architectures.ESRGAN import ESRGAN
from spandrel.architectures.ESRGAN.__arch import RRDB as esrgan
from tiny import OUT, save_cases, seeded

BLOCK = esrgan.B.RRDB
NARROW = mock.patch.object(esrgan.B, "RRDB", lambda **options: BLOCK(**(options | {"gc": 4})))


def second_generation(name, doublings, blocks):
    """BSRGAN's names for ESRGAN's."""
    layer, rest = name.removeprefix("model.").split(".", 1)
    last = 3 * doublings + 4
    if layer == "1":
        parts = rest.removeprefix("sub.").split(".")
        if parts[0] == str(blocks):
            return f"trunk_conv.{parts[1]}"
        return f"RRDB_trunk.{parts[0]}.{parts[1]}.{parts[2]}.{parts[4]}"
    names = {0: "conv_first", last - 2: "HRconv", last: "conv_last"}
    return f"{names.get(int(layer), f'upconv{int(layer) // 3}')}.{rest}"


def third_generation(name, doublings, blocks):
    """Real-ESRGAN's."""
    name = second_generation(name, doublings, blocks)
    for old, new in {"RRDB_trunk": "body", "RDB": "rdb", "trunk_conv": "conv_body", "HRconv": "conv_hr"}.items():
        name = name.replace(old, new)
    return name.replace("upconv", "conv_up")


# Seed, names, and what the network is built with.
NETWORKS = {
    "esrgan_x4": (80, None, dict(num_filters=6, num_blocks=2, scale=4)),
    "esrgan_x1": (81, None, dict(num_filters=5, num_blocks=1, scale=1)),
    "esrgan_plus_x2": (82, None, dict(num_filters=6, num_blocks=1, scale=2, plus=True)),
    "bsrgan_x2": (83, second_generation, dict(num_filters=6, num_blocks=1, scale=2)),
    "real_x8": (84, third_generation, dict(num_filters=5, num_blocks=1, scale=8)),
    "real_x2": (85, third_generation, dict(num_filters=6, num_blocks=1, scale=4, in_nc=12, shuffle_factor=2)),
    "real_x1": (86, third_generation, dict(num_filters=6, num_blocks=1, scale=4, in_nc=48, shuffle_factor=4)),
}
COMPACTS = {
    "compact_x4": (87, dict(num_feat=8, num_conv=3, upscale=4)),
    "compact_x1": (88, dict(num_feat=6, num_conv=1, upscale=1)),
}


def sized(module, seed, last):
    """Seeded weights whose outputs lie in 0 to 1, mostly: what is clamped tells little."""
    module = seeded(module, seed)
    with torch.no_grad():
        last(module).weight.mul_(0.15)
        if isinstance(module, ESRGAN):
            last(module).bias.add_(0.5)
    return module.half().float()


def tiled(picture, network, tile, overlap, scale):
    """The rule of comfy.utils.tiled_scale, for one picture `[1, c, h, w]`."""
    height, width = picture.shape[2:]
    total = torch.zeros(1, 3, height * scale, width * scale)
    weights = torch.zeros_like(total)
    starts = [range(0, side - overlap, tile - overlap) if side > tile else [0] for side in (height, width)]
    for top, left in itertools.product(*starts):
        part = network(picture[:, :, top : top + tile, left : left + tile])
        mask = torch.ones_like(part)
        feather = overlap * scale
        for axis in (2, 3):
            if feather >= mask.shape[axis]:
                continue
            for i in range(feather):
                share = (i + 1) / feather
                mask.narrow(axis, i, 1).mul_(share)
                mask.narrow(axis, mask.shape[axis] - 1 - i, 1).mul_(share)
        place = (..., slice(top * scale, top * scale + part.shape[2]), slice(left * scale, left * scale + part.shape[3]))
        total[place] += part * mask
        weights[place] += mask
    return (total / weights).clamp(0, 1)


def main():
    folder = OUT / "upscaler"
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(89)

    def picture(*shape):
        return torch.rand(shape, generator=generator)

    def save(name, module, rename=None):
        state = {rename(key) if rename else key: value.half().contiguous() for key, value in module.state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")
        with NARROW:
            return ModelLoader().load_from_state_dict({key: value.float() for key, value in state.items()}).eval()

    cases = {}

    def note(name, network, *sides):
        for i, (height, width) in enumerate(sides):
            pixels = picture(1, 3, height, width)
            result = network(pixels)
            inside = ((result > 0) & (result < 1)).float().mean()
            assert inside > 0.6 and result.std() > 0.02, (name, inside, result.std())
            cases[f"{name}.{i}.pixels"] = pixels
            cases[f"{name}.{i}.result"] = result

    with torch.no_grad():
        for name, (seed, names, options) in NETWORKS.items():
            with NARROW:
                module = sized(ESRGAN(**options), seed, lambda module: module.model[-1])
            doublings = options["scale"].bit_length() - 1
            rename = names and (lambda key: names(key, doublings, options["num_blocks"]))
            network = save(name, module, rename)
            # Sides that unshuffling must pad, also by more than it can mirror.
            sides = [(9, 14), (1, 3), (7, 2)] if options.get("shuffle_factor") else [(9, 14), (1, 1)]
            note(name, network, *sides)
            if name == "esrgan_x4":
                pixels = picture(1, 3, 41, 30)
                cases |= {"tiled.pixels": pixels, "tiled.result": tiled(pixels, network, 16, 4, 4)}
        for name, (seed, options) in COMPACTS.items():
            module = sized(Compact(**options), seed, lambda module: module.body[-1])
            note(name, save(name, module), (9, 14), (1, 1))
    save_cases(cases, "upscaler/cases.safetensors")


if __name__ == "__main__":
    main()
