# make setup | test | lint | format | demo | clean. Everything is installed into .venv/ here; a GPU is not needed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DEMO := runs/demo

.PHONY: setup test lint format demo clean
.DELETE_ON_ERROR:

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON) here: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: latentvid needs Python >= 3.11, but \
	$(PYTHON) is $$($(PYTHON) -V 2>&1): make $(MAKECMDGOALS) PYTHON=python3.12 (or newer)" >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv \
	|| { rm -rf .venv; echo "error: $(PYTHON) cannot make a virtual environment: install its venv package" >&2; exit 2; }
	$(BIN)/python -m pip install --disable-pip-version-check --no-input -q -c constraints.txt -e ".[test]"
	@touch $@

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: setup
	$(BIN)/python -m latentvid.data.digits $(DEMO)/data
	$(BIN)/python train/train_text_encoder.py $(DEMO)/t5 --captions $(DEMO)/data/train.jsonl
	$(BIN)/python vae/train_vae.py configs/vae/demo.yaml
	$(BIN)/python vae/encode_latents.py --manifest $(DEMO)/data/train.jsonl --vae $(DEMO)/vae_run/vae \
	  --text-encoder $(DEMO)/t5 --out $(DEMO)/latents
	$(BIN)/python train/train_dit.py configs/dit/demo.yaml
	$(BIN)/python inference/t2v.py --model $(DEMO)/dit_run/pipeline --prompt "a red 7 moves up and to the left" \
	  --output $(DEMO)/demo.mp4

# what builds and tests leave; .venv/ and runs/ stay
clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -path ./runs -prune -o -name __pycache__ -type d -exec rm -rf {} +
