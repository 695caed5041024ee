"""Golden file of background removal: IS-Net (Qin et al. 2022) with few channels, written after the paper and the
names that published weights have."""

import torch
from safetensors.torch import save_file
from tiny import OUT, save_cases
from torch import nn
from torch.nn import functional as F


class ConvNormRelu(nn.Module):
    def __init__(self, inputs, outputs, dilation=1):
        super().__init__()
        self.conv_s1 = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
        self.bn_s1 = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return F.relu(self.bn_s1(self.conv_s1(x)))


def halved(x):
    return F.max_pool2d(x, 2, stride=2, ceil_mode=True)


def like(x, other):
    return F.interpolate(x, size=other.shape[2:], mode="bilinear", align_corners=False)


class Block(nn.Module):
    """A residual U-block of `count` layers that halve the size, or of four that dilate their kernels instead."""

    def __init__(self, inputs, inner, outputs, count=None):
        super().__init__()
        self.pools = count is not None
        self.count = count or 4
        dilations = [1] * (self.count - 1) + [2] if self.pools else [1, 2, 4, 8]
        self.rebnconvin = ConvNormRelu(inputs, outputs)
        for i, dilation in enumerate(dilations, 1):
            setattr(self, f"rebnconv{i}", ConvNormRelu(outputs if i == 1 else inner, inner, dilation))
        for i, dilation in enumerate(dilations[:-1], 1):
            setattr(self, f"rebnconv{i}d", ConvNormRelu(2 * inner, outputs if i == 1 else inner, dilation))

    def forward(self, x):
        x = shortcut = self.rebnconvin(x)
        levels = []
        for i in range(1, self.count + 1):
            pools = self.pools and 1 < i < self.count
            x = getattr(self, f"rebnconv{i}")(halved(x) if pools else x)
            levels.append(x)
        x = levels.pop()
        for i in range(self.count - 1, 0, -1):
            level = levels.pop()
            x = getattr(self, f"rebnconv{i}d")(torch.cat((like(x, level), level), 1))
        return x + shortcut


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.stage1 = Block(6, 3, 6, 7)
        self.stage2 = Block(6, 3, 8, 6)
        self.stage3 = Block(8, 4, 10, 5)
        self.stage4 = Block(10, 5, 12, 4)
        self.stage5 = Block(12, 6, 12)
        self.stage6 = Block(12, 6, 12)
        self.stage5d = Block(24, 6, 12)
        self.stage4d = Block(24, 5, 10, 4)
        self.stage3d = Block(20, 4, 8, 5)
        self.stage2d = Block(16, 3, 6, 6)
        self.stage1d = Block(12, 2, 6, 7)
        for i, channels in enumerate([6, 6, 8, 10, 12, 12], 1):
            setattr(self, f"side{i}", nn.Conv2d(channels, 1, 3, padding=1))

    def logits(self, pixels):
        x = self.conv_in(pixels)
        levels = []
        for i in range(1, 7):
            x = getattr(self, f"stage{i}")(halved(x) if i > 1 else x)
            levels.append(x)
        x = levels.pop()
        for i in range(5, 0, -1):
            level = levels.pop()
            x = getattr(self, f"stage{i}d")(torch.cat((like(x, level), level), 1))
        return like(self.side1(x), pixels)

    def forward(self, pixels):
        return torch.sigmoid(self.logits(pixels))


def network():
    generator = torch.Generator().manual_seed(70)
    model = Network().eval()
    with torch.no_grad():
        for name, tensor in sorted(model.state_dict().items()):
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            elif name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.ndim == 4:
                tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)
            elif name.endswith("bn_s1.weight"):
                tensor.copy_(1 + 0.1 * noise)
            else:
                tensor.copy_(0.2 * noise)
    return model


def cases(model):
    """Sides that halve unevenly at every level, a batch, and a picture as RMBG-1.4's code prepares it."""
    generator = torch.Generator().manual_seed(71)
    result = {}
    for name, shape in {"uneven": (1, 3, 70, 90), "batch": (2, 3, 64, 64)}.items():
        pixels = torch.rand(shape, generator=generator) - 0.5
        result |= {f"{name}.pixels": pixels, f"{name}.alpha": model(pixels)[:, 0]}
        assert result[f"{name}.alpha"].std() > 0.1
    picture = torch.rand((1, 3, 6, 9), generator=generator)
    picture = F.interpolate(picture, size=(40, 56), mode="bilinear")
    seen = F.interpolate(picture, size=(1024, 1024), mode="bilinear") - 0.5
    alpha = F.interpolate(model(seen), size=(40, 56), mode="bilinear")[0, 0]
    alpha = (alpha - alpha.min()) / (alpha.max() - alpha.min())
    return result | {"picture.pixels": picture[0].permute(1, 2, 0), "picture.alpha": alpha}


if __name__ == "__main__":
    model = network()
    with torch.no_grad():
        # The last layer's gain is set so that alphas use the range.
        pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(72)) - 0.5
        model.side1.weight.mul_(2 / model.logits(pixels).std())
        model.side1.bias.sub_(model.logits(pixels).mean())
        save_cases(cases(model), "matting_cases.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, OUT / "matting.safetensors")
