# A static binary and nothing else. It keeps its data in /data.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o /out/node ./cmd/node \
    && mkdir -p /out/data /out/secret

FROM scratch
COPY --from=build /out/node /node
COPY --from=build --chown=65532:65532 /out/data /data
COPY --from=build --chown=65532:65532 /out/secret /secret
USER 65532:65532
ENV HOLDFAST_LISTEN=0.0.0.0:8787 HOLDFAST_CLUSTER_LISTEN=0.0.0.0:8788 HOLDFAST_DATA=/data
EXPOSE 8787 8788 8789 8789/udp
VOLUME /data
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --start-interval=1s CMD ["/node", "health"]
ENTRYPOINT ["/node"]
