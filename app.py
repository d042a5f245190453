"""Starts the demo: `python app.py [--model FOLDER_OR_HUB_ID] [--port PORT] ...`, then open http://127.0.0.1:7860.

The page is served at once, and the model is loaded behind it, with torch and transformers. If it cannot be loaded, the
demo ends.
"""

import argparse
import os

if __name__ == "__main__":  # before anything else is imported, so that help appears at once
    parser = argparse.ArgumentParser(description="Starts the demo of 4DThinker.")
    parser.add_argument(
        "--model", help="a folder or Hub id; by default what FOURDTHINKER_MODEL names, or else the bundled checkpoint"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    parser.add_argument("--subfolder", help="folder within the model's repository that holds the checkpoint")
    parser.add_argument("--dtype", default="auto", help="auto (that of the weights), float32, bfloat16 or float16")
    parser.add_argument("--device", help="cpu, cuda or another device; by default a GPU if there is one")
    parser.add_argument("--host", help="address to serve on, such as 0.0.0.0 for all; by default 127.0.0.1")
    parser.add_argument("--port", type=int, help="by default the first free one from 7860 on")
    parser.add_argument("--share", action="store_true", help="also serve it at a public address of Gradio for a week")
    parser.add_argument("--auth", metavar="NAME:PASSWORD", help="ask visitors for this name and password")
    parser.add_argument("--root-path", help="path of the demo behind a proxy, such as /demo")
    arguments = parser.parse_args()
    if arguments.auth is not None and not all(arguments.auth.partition(":")):
        parser.error("--auth must be NAME:PASSWORD")

import fourdthinker_command

fourdthinker_command.skip_package_init()

from fourdthinker_hf.checkpoints import BUNDLED, check_device, check_dtype, find_model  # noqa: E402

MODEL = os.environ.get("FOURDTHINKER_MODEL", BUNDLED)


def main() -> None:
    check_dtype(arguments.dtype)
    folder = find_model(arguments.model or MODEL, arguments.revision, arguments.subfolder)
    if arguments.device is not None:
        check_device(arguments.device)
    from fourdthinker_hf.demo.interface import build_demo, launch  # Gradio, which takes seconds to import

    launch(
        build_demo(folder, device=arguments.device, dtype=arguments.dtype),
        server_name=arguments.host,
        server_port=arguments.port,
        share=arguments.share,
        auth=arguments.auth and tuple(arguments.auth.split(":", 1)),
        root_path=arguments.root_path,
    )


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:  # also a port that is taken
        parser.exit(2, f"app.py: {' '.join(str(error).split())}\n")
else:
    from fourdthinker_hf.demo.interface import build_demo

    demo = build_demo(find_model(MODEL))  # `gradio app.py` looks for this name
