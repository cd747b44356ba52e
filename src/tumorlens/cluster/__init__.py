"""Work that several processes and machines share: it knows no images and no studies."""
