"""PyPI comfy-api-client: asynchronous, typed answers.

Its `WebsocketStateTracker` works with no server: it calls `client.get_future_with_retry`, which is called
`_get_future_with_retry` in this version. `get_object_info` and `get_node_info` are not written. So: the HTTP tracker.
"""

import asyncio
import json
import sys
from pathlib import Path

from comfy_api_client import create_client


async def run(client, file: str, picture: str, **inputs: object) -> None:
    workflow = json.loads(Path(file).read_text())
    for node, value in inputs.items():
        workflow[node.removeprefix("node")]["inputs"].update(value)
    prompt = await client.submit_workflow(workflow)
    assert prompt.node_errors == {}
    result = await prompt.future
    (item,) = result.output_images
    assert item.format == "png" and item.filename.startswith(picture), item
    item.image.save(f"{picture}.png")


async def main() -> None:
    async with create_client(sys.argv[1], start_state_tracker="http") as client:
        await run(client, "txt2img.json", "txt2img")
        print("did txt2img by polling")

        uploaded = await client.upload_image("drawing.png", "drawing.png", subfolder="api client")
        assert (uploaded.name, uploaded.subfolder, uploaded.type) == ("drawing.png", "api client", "input"), uploaded
        masked = await client.upload_mask("masked.png", "drawing.png", uploaded, subfolder="clipspace")
        assert (masked.name, masked.subfolder) == ("masked.png", "clipspace"), masked
        await run(client, "img2img.json", "img2img", node10={"image": "api client/drawing.png"})
        print("did upload of picture and mask, img2img")

        assert await client.retrieve_image("none.png") is None
        metadata = await client.retrieve_metadata("checkpoints", "tiny-sdxl.safetensors")
        assert metadata is None or isinstance(metadata, dict)
        stats = await client.get_system_stats()
        assert stats.devices[0].torch_vram_total >= 0
        assert list(await client.get_embeddings()) == [] and list(await client.get_extensions()) is not None
        print("did view, system_stats, embeddings, extensions, metadata")

        queue = await client.get_queue()
        assert not queue.running and not queue.pending
        completed = await client.get_completed_prompts()
        assert len(completed) >= 2 and len(await client.get_history(max_items=1)) == 1
        prompt_id = next(iter(completed))
        await client.remove_from_history([prompt_id])
        assert prompt_id not in await client.get_history()
        await client.clear_history()
        assert await client.get_history() == {}
        await client.clear_queue()
        await client.cancel_prompts(["none"])
        await client.interrupt_processing()
        await client.free_memory(unload_models=True, free_memory=True)
        print("did queue, history, interrupt, free")


asyncio.run(main())
