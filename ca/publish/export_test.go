package publish

// FileRetryLast is the longest pause of a file's publisher.
const FileRetryLast = fileRetryLast
