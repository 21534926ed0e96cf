-- Where the parts of a passage stand that stands at more than one place: [[start, {what differs from the place before}],
-- …] in the order of the text, `start` in characters. Null for one place, which is what the row's own columns tell.
-- Nothing searches in it, and `json` takes less than half of the space of `jsonb` here.

alter table chunks add column parts json;
