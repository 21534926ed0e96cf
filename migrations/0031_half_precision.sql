-- The same model's vectors may be kept in half precision: a space of its own, beside the one in single precision.
alter table embedding_spaces drop constraint embedding_spaces_model_version_dim_key;
alter table embedding_spaces add unique (model, version, dim, storage);
