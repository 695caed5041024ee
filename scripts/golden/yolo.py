"""Golden files of the face detector: a narrow YOLOv8 of random weights, its outputs and what it finds in pictures.

The reference is the `ultralytics` package, used as a program. The weights go through convert_yolo.py, as users' do.
"""

import pathlib
import sys
import tempfile

import torch
from tiny import OUT, save_cases, seeded
from ultralytics.data.augment import LetterBox
from ultralytics.nn.modules import Conv
from ultralytics.nn.tasks import DetectionModel, yaml_model_load
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import scale_boxes

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
from convert_yolo import convert  # noqa: E402

CLASSES, HIDDEN, BINS = 3, 8, 16
CONFIDENCE, IOU, DETECTIONS, SIZE = 0.31, 0.7, 40, 640


def network():
    config = yaml_model_load("yolov8n.yaml")
    config["scales"] = {"n": [0.33, 0.0625, 1024]}
    model = DetectionModel(config, ch=3, nc=CLASSES, verbose=False)
    head = model.model[-1]
    # The head is at least 64 channels wide however narrow the rest is: most of the file, and no other code.
    head.cv2 = torch.nn.ModuleList(
        torch.nn.Sequential(
            Conv(branch[0].conv.in_channels, HIDDEN, 3),
            Conv(HIDDEN, HIDDEN, 3),
            torch.nn.Conv2d(HIDDEN, 4 * BINS, 1),
        )
        for branch in head.cv2
    )
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-3
    seeded(model, 90)
    with torch.no_grad():
        head.dfl.conv.weight.copy_(torch.arange(BINS, dtype=torch.float).view(1, BINS, 1, 1))
    # Statistics of real passes, layer after layer: random ones would make the signal grow or die out.
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    generator = torch.Generator().manual_seed(91)
    model.train()
    with torch.no_grad():
        blocks = torch.rand((6, 3, 4, 4), generator=generator)
        model(torch.nn.functional.interpolate(blocks, scale_factor=64, mode="nearest"))
        for norm in norms:
            norm.running_mean += 0.1 * torch.randn(norm.running_mean.shape, generator=generator)
            norm.running_var *= 0.8 + 0.4 * torch.rand(norm.running_var.shape, generator=generator)
    with torch.no_grad():
        for boxes, scores in zip(head.cv2, head.cv3, strict=True):
            boxes[-1].weight *= 0.5
            # Confidences that differ, few of them high: no order is left to rounding.
            scores[-1].weight *= 0.15
            scores[-1].bias -= 1
    model.names = {0: "face", 1: "hand", 2: "cat"}
    return model.half().float().eval()


def pictures():
    """Random blocks of colour, of sizes that are scaled up, down and padded on either side."""
    generator = torch.Generator().manual_seed(92)
    for height, width in [(48, 80), (80, 33), (64, 64), (1, 1), (3, 90)]:
        coarse = torch.rand((1, 3, 1 + height // 8, 1 + width // 8), generator=generator)
        fine = torch.nn.functional.interpolate(coarse, (height, width), mode="nearest")[0]
        yield (255 * fine.permute(1, 2, 0)).to(torch.uint8)


def letterboxed(picture):
    """As floats of 0..1; not rounded to eight bits after scaling, which Darkroom does not do either."""
    box = LetterBox((SIZE, SIZE), auto=True, stride=32)(image=picture.float().numpy())
    return torch.from_numpy(box)[None] / 255


def detect(model, picture):
    x = letterboxed(picture)
    with torch.no_grad():
        prediction = model(x.permute(0, 3, 1, 2))[0]
    found = non_max_suppression(prediction, CONFIDENCE, IOU, max_det=DETECTIONS)[0]
    found[:, :4] = scale_boxes(x.shape[1:3], found[:, :4], picture.shape[:2])
    return found


if __name__ == "__main__":
    torch.manual_seed(0)
    model = network()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = pathlib.Path(folder) / "yolo.pt"
        torch.save({"model": model.half(), "ema": None, "epoch": 1}, checkpoint)
        convert(checkpoint, OUT / "yolo.safetensors")
    model.float()
    x = torch.rand((2, 64, 96, 3), generator=torch.Generator().manual_seed(93))
    with torch.no_grad():
        raw = model(x.permute(0, 3, 1, 2))[1]
    cases = {
        "x": x,
        "distances": raw["boxes"].transpose(1, 2),
        "scores": raw["scores"].transpose(1, 2),
        "options": torch.tensor([CONFIDENCE, IOU, DETECTIONS]),
    }
    for index, picture in enumerate(pictures()):
        cases[f"picture.{index}"] = picture
        cases[f"found.{index}"] = detect(model, picture)
        print(tuple(picture.shape), len(cases[f"found.{index}"]), "found")
    save_cases(cases, "yolo_cases.safetensors")
