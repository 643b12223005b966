# mpunet for CPUs and CUDA GPUs. docs/container.md says how to build it for each, and how to run it.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
# Release of torch, and the package index that has its builds for CPUs. Without an index, torch
# comes from the index that pip is set to: on x86 Linux a build for CUDA.
ARG TORCH=torch
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/mpunet
RUN /opt/mpunet/bin/pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH"
COPY . /src
RUN /opt/mpunet/bin/pip install "/src[dicom]"

FROM python:${PYTHON}-slim
COPY --from=build /opt/mpunet /opt/mpunet
# Runs as any user, without network and on a read-only root; /tmp is the only other place to write.
# MONAI asks for the user's name, which numbers given to --user do not have.
ENV PATH=/opt/mpunet/bin:$PATH HOME=/tmp USER=mpunet PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
WORKDIR /tmp
ENTRYPOINT ["mpunet"]
CMD ["--help"]
