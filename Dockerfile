# The app for one machine:
# docker build --tag shardscope .
# docker run --init --publish 127.0.0.1:8501:8501 --volume shardscope-runs:/runs shardscope
#
# torch for the CPU alone: with CUDA the image would be 5 GB larger. Runs are kept in the volume /runs. A folder that is mounted
# there instead must be writable for uid 1000.
FROM python:3.13-slim

RUN useradd --uid 1000 --create-home shardscope && install --directory --owner shardscope /runs
WORKDIR /app
COPY requirements.txt .
RUN torch=$(sed -n 's/^\(torch == [0-9.]*\).*/\1/p' requirements.txt) \
    && pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "$torch" \
    && pip install --no-cache-dir --requirement requirements.txt
COPY . .
RUN python -m compileall -q app.py engine pages

USER shardscope
VOLUME /runs
EXPOSE 8501
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8501/_stcore/health', timeout=4)"]
# Inside of the container every address; --publish says who reaches it from outside.
CMD ["streamlit", "run", "app.py", "--server.address", "0.0.0.0", "--server.headless", "true", \
    "--server.fileWatcherType", "none", "--", "--runs", "/runs"]
