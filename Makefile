# make setup | test | test-avx2 | test-slow | lint | format | docs | demo | demo-tasks | reference | reference-footage |
# check-quality | clean.
# All is installed into .venv/ here; a GPU is not needed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
SEED := 0
DEMO := $(if $(filter 0,$(SEED)),runs/demo,runs/demo-seed$(SEED))
# glibc keeps what a step frees for the next one: without it each step takes thousands of new pages from the system
MALLOC := MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=2147483648 MALLOC_TOP_PAD_=67108864
# with a GPU one process drives it; without, one process a core (two at most) is faster than threads
ifneq ($(shell command -v nvidia-smi),)
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no
else ifeq ($(shell nproc),1)
LAUNCH := $(MALLOC) OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true $(BIN)/python
else
LAUNCH := $(MALLOC) OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true $(BIN)/accelerate launch --multi_gpu --num_processes 2 \
  --num_machines 1 --main_process_port 0 --mixed_precision no --dynamo_backend no
endif

.PHONY: setup test test-avx2 test-slow lint format docs demo demo-tasks reference reference-footage check-quality clean
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

# one process a core, four at most; a file of tests stays in one process until another has nothing to do
PYTEST := $(BIN)/python -m pytest -n $(shell n=$$(nproc); echo $$((n < 4 ? n : 4))) --dist worksteal
test: setup
	OMP_NUM_THREADS=1 $(PYTEST) $(ARGS)

# the same as a processor computes that has AVX2, but neither AVX512 nor bf16 instructions: its kernels, its roundings
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 DNNL_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
test-avx2: setup
	$(AVX2) OMP_NUM_THREADS=1 $(PYTEST) $(ARGS)

# two nodes in network namespaces (as root, with iproute2), kills, every topology and kind of compiled run; ARGS=tests/slow/test_kills.py for one
test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -rs $(or $(ARGS),tests)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# the documents as a site, in site/
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# clips and captions -> VAE -> latents -> DiT -> a generated video, scores and a page: SEED=1 makes another run
demo: setup
	@mkdir -p $(DEMO)
	@test -f $(DEMO)/started || date +%s > $(DEMO)/started
	test -f $(DEMO)/data/train.jsonl || OMP_NUM_THREADS=1 $(BIN)/python -m latentvid.demo.digits $(DEMO)/data --seed $(SEED)
	test -f $(DEMO)/t5/model.safetensors || OMP_NUM_THREADS=1 $(BIN)/python train/train_text_encoder.py $(DEMO)/t5 \
	  --captions $(DEMO)/data/train.jsonl --seed $(SEED)
	$(LAUNCH) vae/train_vae.py configs/vae/demo.yaml --run.dir=$(DEMO)/vae_run --run.seed=$(SEED) $(SHORT) \
	  --data.manifest=$(DEMO)/data/train.jsonl --validation.manifest=$(DEMO)/data/val.jsonl
	$(LAUNCH) vae/encode_latents.py --manifest $(DEMO)/data/train.jsonl --vae $(DEMO)/vae_run/vae \
	  --text-encoder $(DEMO)/t5 --patch 2 --out $(DEMO)/latents
	$(LAUNCH) train/train_dit.py configs/dit/demo.yaml --run.dir=$(DEMO)/dit_run --run.seed=$(SEED) $(SHORT) \
	  --vae=$(DEMO)/vae_run/vae --text_encoder=$(DEMO)/t5 --data.latents=$(DEMO)/latents \
	  --validation.manifest=$(DEMO)/data/val.jsonl
	@rm -rf $(DEMO)/pipeline && cp -r $(DEMO)/dit_run/pipeline $(DEMO)/pipeline
	$(BIN)/python inference/t2v.py --model $(DEMO)/pipeline --prompt "a red 7 moves up and to the left" \
	  --output $(DEMO)/video.mp4
	test -f $(DEMO)/scores.json || $(LAUNCH) -m latentvid.demo.scoring $(DEMO) --seed $(SEED) $(SCORED)
	$(BIN)/python -m latentvid.report $(DEMO)
	@echo "Look at $(DEMO)/report.html; the video is $(DEMO)/video.mp4."

# after make demo: the same transformer trained for every task that is conditioned on frames, and the tasks' scores
demo-tasks: setup
	@test -f $(DEMO)/scores.json || { echo "error: $(DEMO) is no finished demo: make demo SEED=$(SEED) first" >&2; exit 2; }
	$(LAUNCH) train/train_dit.py configs/dit/demo_tasks.yaml --run.dir=$(DEMO)/tasks_run --run.seed=$(SEED) \
	  --vae=$(DEMO)/vae_run/vae --text_encoder=$(DEMO)/t5 --data.latents=$(DEMO)/latents \
	  --validation.manifest=$(DEMO)/data/val.jsonl
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/tasks.py $(DEMO) $(DEMO)/tasks_run/pipeline --out $(DEMO)/tasks

# make demo, and then whether its figures lie within the tolerance of docs/reference/demo
reference: demo
	$(BIN)/python benchmarks/reference.py check demo $(DEMO)

# the demo with a quarter of its steps and few clips, from nothing; fails where the autoencoder is below a floor or the
# clips do not follow their prompts above chance
QUALITY := runs/quality
check-quality: setup
	rm -rf $(QUALITY)
	$(MAKE) demo DEMO=$(QUALITY) SHORT="--train.steps=350 --checkpoint.every=350" SCORED="--prompts 84 --heldout 28"
	$(BIN)/python benchmarks/check_quality.py $(QUALITY)

# the run of docs/reference/footage.md: CLIPS=folder of video files, T5=folder or hub name, WEIGHTS=folder of lpips/,
# inception/ and i3d/ (hours on two cores)
FOOTAGE := runs/footage
reference-footage: setup
	@test -d "$(CLIPS)" -a -n "$(T5)" -a -d "$(WEIGHTS)" || { echo "error: make reference-footage CLIPS=DIR T5=DIR WEIGHTS=DIR: \
	what these hold is said in docs/reference/footage.md" >&2; exit 2; }
	test -f $(FOOTAGE)/data/prompts.jsonl || $(BIN)/python benchmarks/footage.py --clips $(CLIPS) --out $(FOOTAGE)/data
	OMP_NUM_THREADS=1 $(BIN)/python vae/train_vae.py configs/vae/footage.yaml
	$(BIN)/python vae/evaluate.py --vae $(FOOTAGE)/ours/vae $(FOOTAGE)/data/held_out --size 128 --max-clips 32 --mixed-precision no \
	  --lpips $(WEIGHTS)/lpips --out $(FOOTAGE)/vae_scores
	$(LAUNCH) vae/encode_latents.py --manifest $(FOOTAGE)/data/dit_train.jsonl --vae $(FOOTAGE)/ours/vae \
	  --text-encoder $(T5) --patch 2 --max-area 15360 --out $(FOOTAGE)/latents
	$(LAUNCH) train/train_dit.py configs/dit/footage.yaml --text_encoder=$(T5)
	$(LAUNCH) inference/t2v.py --model $(FOOTAGE)/dit/pipeline --prompts $(FOOTAGE)/data/prompts.jsonl --output $(FOOTAGE)/clips
	$(LAUNCH) -m latentvid.evaluation $(FOOTAGE)/clips --real $(FOOTAGE)/data/dit_validation.jsonl --frames 17 \
	  --drop-short --allow rate --size 96 160 --max-real 66 --weights $(WEIGHTS) --out $(FOOTAGE)/evaluation
	$(BIN)/python -m latentvid.report $(FOOTAGE)/dit
	$(BIN)/python benchmarks/reference.py check footage $(FOOTAGE)

# what builds and tests leave; .venv/ and runs/ stay
clean:
	rm -rf build dist site .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -path ./runs -prune -o -name __pycache__ -type d -exec rm -rf {} +
