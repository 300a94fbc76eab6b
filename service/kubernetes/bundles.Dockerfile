# The bundles as an OCI image; build it in the folder of the bundles:
#   docker build -f service/kubernetes/bundles.Dockerfile --target volume -t NAME:TAG artifacts/bundles
# `volume` holds the files alone, for an image volume. `copy` can copy them, for an init container.
FROM docker.io/library/busybox:1.37 AS copy
COPY . /bundles/
USER 10001

FROM scratch AS volume
COPY . /
