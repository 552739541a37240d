# The scorer, MLflow and Dagster in one image; which of them runs is the command (see compose.yaml).
FROM python:3.11-slim

RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
WORKDIR /srv/vigil
COPY requirements.lock ./
RUN pip install --no-cache-dir --upgrade pip \
    && pip install --no-cache-dir --requirement requirements.lock \
    && pip install --no-cache-dir psycopg2-binary==2.9.11 dagster-postgres==0.29.27
COPY . .
RUN pip install --no-cache-dir --no-deps . \
    && useradd --create-home vigil && mkdir -p /var/lib/vigil && chown vigil /var/lib/vigil
USER vigil
CMD ["vigil", "--help"]
