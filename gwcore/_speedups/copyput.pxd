# Level 2. Keeping answers in the store of copies.
from gwcore._speedups.copies cimport Copies, CopyKey, CopyMeta, CopyText
from gwcore._speedups.types cimport uint64_t

cdef int copy_put(Copies *s, const CopyKey *key, const CopyMeta *meta, const CopyText *head, const CopyText *tags, const CopyText *body,
                  uint64_t epoch, uint64_t now_ms) noexcept nogil
