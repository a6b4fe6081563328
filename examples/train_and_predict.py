"""The whole way from Python: train, look at what was reached, predict, go on with the model file alone.

    python examples/train_and_predict.py photos/ new/*.jpg          # digits without them

The run is the same as that of `kiln train photos/ --epochs 10 --seed 0`, weights and all.
"""

import sys

import kiln


def main(data: str, *images: str, output: str = "runs", **settings: object) -> list[str]:
    run = kiln.train(data, output=output, **{"epochs": 10, "seed": 0, **settings})

    # What was reached, with its interval; what was decided and why; what the best model said of each held-out image.
    for split, metrics in run.summary()["metrics"].items():
        accuracy = metrics["accuracy"]
        print(f"{split}: {accuracy['value']:.1%} ({accuracy['low']:.1%} to {accuracy['high']:.1%})")
    print("learning rate", run.resolved["values"]["optim.lr"], "because of:", run.resolved["reasons"].get("optim.lr"))
    mistakes = [row for row in run.predictions() if row["label"] != row["predicted"]]
    print(f"{len(mistakes)} mistakes:", ", ".join(row["key"] for row in mistakes[:5]))

    # The model file holds the classes and the preprocessing: it is all that is needed somewhere else.
    model = kiln.load(run.model_file)
    predictions = model.predict(list(images), top_k=2)
    for path, said in zip(images, predictions, strict=True):
        print(path, said.error or ", ".join(f"{name} {share:.0%}" for name, share in said.top))
    return [said.label for said in predictions]


if __name__ == "__main__":
    from _digits import digits_folder

    main(*sys.argv[1:] or [digits_folder()])
