"""Bodies of `POST /prompt` that a server refuses, or takes in part, by name. A string is sent as it is."""

import copy

PICTURE = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "errors"}},
}
SAMPLED = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sdxl_tiny.safetensors"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a photo"}},
    "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "4": {"class_type": "KSampler", "inputs": {
        "model": ["1", 0], "seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal",
        "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0], "denoise": 1.0}},
    "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
    "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "errors"}},
}


def changed(graph: dict, changes: dict, without: tuple = ()) -> dict:
    """A copy with some inputs set (`"4.seed": value`), nodes replaced (`"4": node`), and either left out."""
    graph = copy.deepcopy(graph)
    for key, value in changes.items():
        node, _, name = key.partition(".")
        if name:
            graph[node]["inputs"][name] = value
        else:
            graph[node] = value
    for key in without:
        node, _, name = key.partition(".")
        if name:
            del graph[node]["inputs"][name]
        else:
            del graph[node]
    return graph


def bodies() -> dict:
    def sampled(changes=(), without=()):
        return {"prompt": changed(SAMPLED, dict(changes), without)}

    def picture(changes=(), without=()):
        return {"prompt": changed(PICTURE, dict(changes), without)}

    load = {"class_type": "LoadImage", "inputs": {"image": "photo.png"}}
    return {
        "no_prompt": {},
        "no_prompt_but_more": {"client_id": "x", "extra_data": {}},
        "empty_prompt": {"prompt": {}},
        "prompt_null": {"prompt": None},
        "prompt_list": {"prompt": [1, 2]},
        "prompt_string": {"prompt": "text"},
        "prompt_number": {"prompt": 5},
        "body_null": "null",
        "body_number": "7",
        "body_empty": "",
        "body_not_json": "{not json",
        "body_nan": '{"prompt": NaN}',
        "node_null": {"prompt": {"1": None}},
        "node_string": {"prompt": {"1": "x"}},
        "node_empty": {"prompt": {"1": {}}},
        "no_class": picture({"1": {"inputs": {}}}),
        "unknown_class": picture({"1.width": 8, "2": {"class_type": "NoSuchNode", "inputs": {}}}),
        "class_null": picture({"1": {"class_type": None, "inputs": {}}}),
        "class_number": picture({"1": {"class_type": 5, "inputs": {}}}),
        "no_inputs": {"prompt": {"2": {"class_type": "SaveImage"}}},
        "no_inputs_upstream": picture({"1": {"class_type": "EmptyImage"}}),
        "no_outputs": picture((), ("2",)),
        "missing_one": sampled((), ("4.seed",)),
        "missing_several": sampled((), ("4.seed", "4.model", "3.width", "6.filename_prefix")),
        "missing_all": {"prompt": {"1": {"class_type": "SaveImage", "inputs": {}}}},
        "below_min": sampled({"4.steps": 0}),
        "below_min_float": sampled({"4.cfg": -0.5}),
        "above_max": sampled({"4.steps": 10001, "4.denoise": 1.5}),
        "seed_negative": sampled({"4.seed": -1}),
        "seed_beyond_64_bits": sampled({"4.seed": 2**64}),
        "seed_huge": sampled({"4.seed": 10**30}),
        "width_below_min": sampled({"3.width": 8}),
        "width_above_max": sampled({"3.width": 16392}),
        "not_in_list": sampled({"4.sampler_name": "no_such_sampler"}),
        "not_in_short_list": sampled({"4.scheduler": "no_such_scheduler"}),
        "list_value_number": sampled({"4.scheduler": 3}),
        "list_value_null": sampled({"4.scheduler": None}),
        "no_such_checkpoint": sampled({"1.ckpt_name": "absent.safetensors"}),
        "checkpoint_outside": sampled({"1.ckpt_name": "../../secret.safetensors"}),
        "int_is_words": sampled({"4.steps": "three"}),
        "int_is_float_text": sampled({"4.steps": "3.5"}),
        "int_is_null": sampled({"4.steps": None}),
        "int_is_object": sampled({"4.steps": {"a": 1}}),
        "int_is_empty_text": sampled({"4.steps": ""}),
        "float_is_words": sampled({"4.cfg": "much"}),
        "float_is_null": sampled({"4.cfg": None}),
        "link_of_one": sampled({"4.model": ["1"]}),
        "link_of_three": sampled({"4.model": ["1", 0, 0]}),
        "link_empty": sampled({"4.model": []}),
        "number_is_list": sampled({"4.steps": [1, 2, 3]}),
        "link_to_nothing": sampled({"4.model": ["77", 0]}),
        "link_to_nothing_in_output": picture({"2.images": ["77", 0]}),
        "link_beyond_outputs": sampled({"4.model": ["1", 9]}),
        "link_slot_text": sampled({"4.model": ["1", "0"]}),
        "link_node_number": sampled({"4.model": [1, 0]}),
        "wrong_type": sampled({"4.model": ["1", 1]}),
        "wrong_types": sampled({"4.model": ["1", 2], "4.positive": ["3", 0], "6.images": ["4", 0]}),
        "link_where_text_is": sampled({"2.text": ["1", 0]}),
        "model_is_a_number": sampled({"4.model": 5}),
        "model_is_null": sampled({"4.model": None}),
        "model_is_text": sampled({"4.model": "sdxl"}),
        "cycle_of_one": {"prompt": {
            "1": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "errors"}}}},
        "cycle_of_two": {"prompt": {
            "1": {"class_type": "ImageInvert", "inputs": {"image": ["3", 0]}},
            "3": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "errors"}}}},
        "no_such_image": picture({"1": {"class_type": "LoadImage", "inputs": {"image": "absent.png"}}}),
        "image_outside": picture({"1": {"class_type": "LoadImage", "inputs": {"image": "../secret.png"}}}),
        "image_null": picture({"1": {"class_type": "LoadImage", "inputs": {"image": None}}}),
        "no_such_mask_image": {"prompt": {
            "1": {"class_type": "LoadImageMask", "inputs": {"image": "absent.png", "channel": "purple"}},
            "2": {"class_type": "MaskToImage", "inputs": {"mask": ["1", 0]}},
            "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "errors"}}}},
        "no_such_latent": {"prompt": {
            "1": {"class_type": "LoadLatent", "inputs": {"latent": "absent.latent"}},
            "2": {"class_type": "SaveLatent", "inputs": {"samples": ["1", 0], "filename_prefix": "errors"}}}},
        "new_style_list": {"prompt": {
            "1": load,
            "2": {"class_type": "ImageBlend", "inputs": {"image1": ["1", 0], "image2": ["1", 0], "blend_factor": 2.0, "blend_mode": "dodge"}},
            "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "errors"}}}},
        "one_output_of_two": {"prompt": changed(PICTURE, {"3": {"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "x"}},
                                                         "4": {"class_type": "PreviewImage", "inputs": {}}})},
        "two_outputs_share_an_error": {"prompt": changed(PICTURE, {"1.width": 0, "3": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}})},
        "unused_bad_node": {"prompt": changed(PICTURE, {"3": {"class_type": "EmptyImage", "inputs": {"width": -1}}})},
        "unknown_inputs_are_left_alone": picture({"1.colour": "blue", "2._meta": 3}),
        "prompt_id_number": {**picture(), "prompt_id": 5},
        "number_text": {**picture(), "number": "first"},
        "number_null": {**picture(), "number": None},
        "targets_none_of_them": {**picture(), "partial_execution_targets": ["77"]},
        "targets_not_an_output": {**picture(), "partial_execution_targets": ["1"]},
        "targets_empty": {**picture(), "partial_execution_targets": []},
        "targets_number": {**picture(), "partial_execution_targets": 5},
        "targets_leave_the_bad_one_out": {"prompt": changed(PICTURE, {"3": {"class_type": "PreviewImage", "inputs": {}}}), "partial_execution_targets": ["2"]},
        "extra_data_text": {**picture(), "extra_data": "x", "client_id": "c"},
    }


def failing() -> dict:
    """Prompts that are taken and fail while they run."""
    return {
        "broken_picture": {
            "1": {"class_type": "LoadImage", "inputs": {"image": "broken.png"}},
            "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
            "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
        },
        "latent_of_another_kind": {
            "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sdxl_tiny.safetensors"}},
            "2": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
            "3": {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0], "vae": ["1", 2]}},
            "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
        },
    }
