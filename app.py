"""The demo: `python app.py`, then http://127.0.0.1:7860. All of it is in `fourdthinker_hf/demo/`."""

import argparse

from fourdthinker_hf.demo.interface import MODEL, build_demo, launch, load

demo = build_demo()  # Spaces look for this name

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The demo of 4DThinker.")
    parser.add_argument("--model", default=MODEL, help="a folder or Hub id; the bundled checkpoint if none is named")
    model = parser.parse_args().model
    demo = build_demo(model, load(model))  # now, so that a wrong name is told now
    launch(demo)
