"""Starts the demo: `python app.py [--model FOLDER_OR_HUB_ID]`, then open http://127.0.0.1:7860."""

import argparse

from fourdthinker_hf.demo.handlers import load_qa
from fourdthinker_hf.demo.interface import MODEL, build_demo, launch

demo = build_demo()  # `gradio app.py` looks for this name

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Starts the demo of 4DThinker.")
    parser.add_argument(
        "--model",
        default=MODEL,
        help="a folder or Hub id; by default what FOURDTHINKER_MODEL names, or else the bundled checkpoint",
    )
    model = parser.parse_args().model
    try:
        demo = build_demo(model, load_qa(model))  # loads the model now, so that a wrong name is reported at once
    except (ValueError, OSError) as error:
        parser.exit(2, f"app.py: {' '.join(str(error).split())}\n")
    launch(demo)
