"""PyPI comfyui-workflow-client (module `comfyuiclient`): a blocking class that polls and an asynchronous one that
listens. Both upload a picture when one is set on a node."""

import asyncio
import sys

from comfyuiclient import ComfyUIClient, ComfyUIClientAsync
from PIL import Image

address = sys.argv[1].removeprefix("http://")
drawing = Image.open("drawing.png")


async def listen() -> None:
    client = ComfyUIClientAsync(address, "txt2img.json")
    await client.connect()
    await client.set_data("Positive", text="1girl, green hair, white background")
    made = await client.generate(["Save Image"])
    made["Save Image"].save("txt2img.png")
    print("did txt2img over the socket")
    await client.close()

    client = ComfyUIClientAsync(address, "img2img.json")
    await client.connect()
    await client.set_data("Load Image", image=drawing)
    made = await client.generate(["SaveImage"])
    made["SaveImage"].save("img2img.png")
    print("did upload, img2img")
    await client.close()


asyncio.run(listen())

client = ComfyUIClient(address, "img2img.json")
client.connect()
client.set_data("KSampler", seed=987654321)
client.set_data("Load Image", image=drawing)
client.generate(["Save Image"])["Save Image"].save("polled.png")
client.close()
print("did upload, img2img by polling")
