"""Starts the demo: `python app.py [--model FOLDER_OR_HUB_ID]`, then open http://127.0.0.1:7860.

The page is served at once, and the model is loaded behind it. If it cannot be loaded, the demo ends.
"""

import argparse

if __name__ == "__main__":  # before anything else is imported, so that help appears at once
    parser = argparse.ArgumentParser(description="Starts the demo of 4DThinker.")
    parser.add_argument(
        "--model", help="a folder or Hub id; by default what FOURDTHINKER_MODEL names, or else the bundled checkpoint"
    )
    model = parser.parse_args().model

from fourdthinker_hf.checkpoints import find_model
from fourdthinker_hf.demo.interface import MODEL, build_demo, launch

if __name__ == "__main__":
    try:
        find_model(model or MODEL)  # before the page is made, so that a wrong name is reported at once
        launch(build_demo(model or MODEL))
    except (ValueError, OSError) as error:
        parser.exit(2, f"app.py: {' '.join(str(error).split())}\n")
else:
    demo = build_demo()  # `gradio app.py` looks for this name
