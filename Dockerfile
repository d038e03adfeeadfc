# fedsim with CUDA wheels of torch: docker build -t fedsim . && docker run --gpus all -v "$PWD/runs:/fedsim/runs" fedsim \
#     fabric run recipes/quickstart.py --accelerator cuda --devices 1 --out runs/first
FROM python:3.12-slim

WORKDIR /fedsim
COPY pyproject.toml README.md LICENSE ./
COPY fedsim fedsim
COPY recipes recipes
RUN pip install --no-cache-dir .

# Decoded images, tokens, weights and the embedded backbone: mount a volume here to keep them.
ENV FEDSIM_CACHE=/cache HF_HOME=/cache/huggingface
RUN useradd --uid 1000 --create-home researcher && mkdir -p /cache runs && chown -R researcher /cache runs
USER 1000

CMD ["python", "recipes/quickstart.py", "--help"]
