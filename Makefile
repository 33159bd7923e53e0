# The Rerank Lab. `make help` lists the targets. Another Python: make book PYTHON=/path/to/python3.11

PYTHON ?= python3
PORT ?= 8000
EXTRAS := book,offline,api,serve,train,langchain,llama-index,mcp,ray,dev
QUIET_HUB := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help book test serve notebooks lint bench bench-quality train clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1 \2/p' $(MAKEFILE_LIST) | while read -r target intent; do \
		printf '  make %-14s %s\n' "$$target" "$$intent"; done

book: .venv/.installed ## execute every chapter and build the book into _build/html
	@.venv/bin/python tools/package_digest.py
	@rm -rf _build/html/reports _build/html/index.html
	@$(QUIET_HUB) PYTHONHASHSEED=0 .venv/bin/jupyter-book build book --config _config.yml --path-output . \
		-n -W --keep-going || { \
		rm -rf _build/.doctrees; \
		reports=$$(find _build/html/reports -name '*.err.log' 2>/dev/null | sort | tr '\n' ' '); \
		if [ -n "$$reports" ]; then echo "make book: a chapter failed; its report: $$reports" >&2; \
		else echo "make book: the build stopped at a warning or an error, shown above" >&2; fi; \
		exit 1; }
	@test -f _build/html/index.html || { \
		echo "make book: the build ended without _build/html/index.html: look above for what it said" >&2; exit 1; }
	@raw=$$(grep -rl --include='*.html' '|—|' _build/html); test -z "$$raw" || { \
		echo "make book: a table shows as bars and dashes in:" $$raw >&2; exit 1; }
	@echo "The book: file://$(CURDIR)/_build/html/index.html (or run: make serve)"

test: lint ## lint, then run the tests and the package's doctests
	@$(QUIET_HUB) OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist worksteal -q

serve: .venv/.installed ## serve the built book at http://127.0.0.1:8000
	@test -f _build/html/index.html || { echo "make serve: there is no book yet, run: make book" >&2; exit 1; }
	@echo "http://127.0.0.1:$(PORT) (Ctrl-C stops it)"
	@.venv/bin/python -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

notebooks: .venv/.installed ## write notebooks/*.ipynb from book/chapters/*.md
	@.venv/bin/python tools/notebooks.py

lint: .venv/.installed ## check style and that generated files are fresh
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/python tools/environment.py --check
	@.venv/bin/python tools/notebooks.py --check

bench: .venv/.installed ## run the slower checks in bench/
	@TOKENIZERS_PARALLELISM=false .venv/bin/python -m pytest bench

bench-quality: .venv/.installed ## measure the bundled models, write rerank_lab/data/measured.json
	@TOKENIZERS_PARALLELISM=false .venv/bin/python bench/quality.py

train: .venv/.installed ## train the bundled models, one after the other
	@for model in bi_encoder colbert cross_encoder t5; do \
		TOKENIZERS_PARALLELISM=false .venv/bin/python -m rerank_lab.training.loop rerank_lab/training/$$model.toml || exit 1; \
	done

clean: ## remove what was built; .venv and runs stay
	@rm -rf _build .pytest_cache .ruff_cache .hypothesis rerank_lab.egg-info
	@find rerank_lab tests tools bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

.venv/.installed: pyproject.toml requirements.lock
	@found=$$("$(PYTHON)" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || found=; \
	if [ -z "$$found" ]; then \
		echo "Python 3.10 or newer is needed and '$(PYTHON)' does not run: make book PYTHON=/path/to/python3.11" >&2; exit 1; \
	elif ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then \
		echo "Python 3.10 or newer is needed and '$(PYTHON)' is $$found: make book PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi
	@.venv/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
		|| "$(PYTHON)" -m venv --clear .venv || { \
		echo "Making .venv failed: see above; on Debian and Ubuntu the package python3-venv may be missing" >&2; exit 1; }
	@echo "Installing what the lab needs into .venv; the first time takes some minutes."
	@.venv/bin/python -m pip install -q --disable-pip-version-check -c requirements.lock -e ".[$(EXTRAS)]" || { \
		echo "Installing into .venv failed: check the connection to the package index and run the same command again;" \
			"what was downloaded is kept" >&2; exit 1; }
	@touch $@
