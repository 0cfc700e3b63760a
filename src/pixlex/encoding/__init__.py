"""Sources of images into files of words or codes, such files back into pictures; resumable at any moment."""
