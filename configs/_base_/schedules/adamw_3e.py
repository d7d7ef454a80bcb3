"""AdamW, linear warm-up, cosine to zero, three epochs: the defaults of vesselseg.config.settings.Schedule."""

schedule = dict()
