FROM python:3.13-slim

RUN useradd --system --uid 10001 service
WORKDIR /srv

COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir --upgrade "pip>=25.1" && pip install --no-cache-dir . --group demo

COPY migrations ./migrations
COPY examples/service ./examples/service

# By number: `runAsNonRoot` of Kubernetes cannot check a name.
USER 10001
EXPOSE 8000
CMD ["uvicorn", "--app-dir", "examples/service", "app:app", "--lifespan", "on", "--host", "0.0.0.0", "--port", "8000"]
