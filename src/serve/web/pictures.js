/* Pictures before they are sent: from a file, the clipboard, a drop or the camera. The bytes go to the server as they
 * are, so that it sees the very pixels; only what it cannot read (AVIF, SVG, ...) or is too large is drawn again. */
import { $, h } from "./dom.js";
import { t } from "./i18n.js";

const readable = ["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp"];
const LARGEST_SIDE = 2048, // of a picture that has to be drawn again
  MOST_PIXELS = 178956970; // that the server decodes, as Pillow does

function uri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/* Decodes; also tells whether this is a picture at all. */
function decode(blob) {
  return new Promise((resolve, reject) => {
    const image = new Image(),
      url = URL.createObjectURL(blob);
    image.onload = () => {
      URL.revokeObjectURL(url);
      resolve(image);
    };
    image.onerror = () => {
      URL.revokeObjectURL(url);
      reject(new Error("not a picture"));
    };
    image.src = url;
  });
}

function draw(source, width, height) {
  const scale = Math.min(1, LARGEST_SIDE / Math.max(width, height));
  const canvas = h("canvas", {
    width: Math.max(1, Math.round(width * scale)),
    height: Math.max(1, Math.round(height * scale)),
  });
  canvas.getContext("2d").drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/* A file as a data URI; throws an Error whose message is for people. */
export async function read(file, limits) {
  let image;
  try {
    image = await decode(file);
  } catch {
    throw new Error(t("not_picture", { name: file.name }));
  }
  const small = file.size <= limits.image_bytes && image.naturalWidth * image.naturalHeight <= MOST_PIXELS;
  if (small && readable.includes(file.type)) return uri(file);
  const canvas = draw(image, image.naturalWidth || 512, image.naturalHeight || 512);
  const again = small ? canvas.toDataURL("image/png") : canvas.toDataURL("image/jpeg", 0.92);
  if (again.length * 0.75 > limits.image_bytes)
    throw new Error(t("too_large", { name: file.name, n: Math.floor(limits.image_bytes / 1e6) }));
  return again;
}

export function enlarge(src, alt) {
  const viewer = $("#viewer"),
    image = $("img", viewer);
  image.src = src;
  image.alt = alt;
  viewer.onclick = () => viewer.close();
  viewer.showModal();
}

/* A photograph as a file, or null. Phones have a camera program of their own behind <input capture>. */
export async function photograph() {
  const dialog = $("#shutter"),
    video = $("video", dialog);
  const stream = await navigator.mediaDevices.getUserMedia({
    video: { facingMode: "environment", width: { ideal: 1920 } },
    audio: false,
  });
  try {
    video.srcObject = stream;
    dialog.showModal();
    const canvas = await new Promise(resolve => {
      $("#shoot").onclick = () => video.videoWidth && resolve(draw(video, video.videoWidth, video.videoHeight));
      $("#unshoot").onclick = () => resolve(null);
      dialog.onclose = () => resolve(null);
    });
    const blob = canvas && (await new Promise(resolve => canvas.toBlob(resolve, "image/jpeg", 0.95)));
    return blob && new File([blob], "photograph.jpg", { type: blob.type });
  } finally {
    for (const track of stream.getTracks()) track.stop();
    video.srcObject = null;
    dialog.onclose = null;
    dialog.close();
  }
}
